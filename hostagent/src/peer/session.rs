//! The peers as this node asks them: connections, and who is asked at all.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use quinn::{ClientConfig, Connection, Endpoint, RecvStream};
use tokio::time::timeout;

use super::bucket::{self, Bucket};
use super::config::{Peer, Settings};
use super::error::{AskError, Attempt};
use super::key::NodeKey;
use super::message::{self, Answer, MAX_ANSWER_BYTES, Request};
use super::tls;
use super::transport::{self, Code, Patience};

/// Bytes that are received at a time, where how many is limited.
const RECEIVE_BYTES: usize = 64 << 10;
/// The most notes that wait to be shown.
const MAX_NOTES: usize = 100;

/// What all requests of this process share.
pub(super) struct Session {
    key: NodeKey,
    pub patience: Patience,
    peers: Vec<Known>,
    /// For IPv4 and for IPv6, on first need.
    endpoints: [OnceLock<Endpoint>; 2],
    receive: Option<Bucket>,
    notes: Mutex<Vec<String>>,
}

/// A peer that has an address.
pub(super) struct Known {
    pub peer: Peer,
    pub address: SocketAddr,
    distrusted: AtomicBool,
    state: tokio::sync::Mutex<State>,
}

impl Known {
    /// What came of asking it.
    pub fn attempt(&self, problem: AskError) -> Attempt {
        Attempt {
            peer: self.peer.key,
            address: Some(self.address),
            problem,
        }
    }
}

enum State {
    NotTried,
    Open(Connection),
    /// Since when, and why.
    Unreachable(Instant, AskError),
}

impl Session {
    pub fn new(key: NodeKey, settings: &Settings, patience: Patience) -> Self {
        let known = settings.peers.iter().filter_map(|peer| {
            Some(Known {
                address: peer.address?,
                peer: peer.clone(),
                distrusted: AtomicBool::new(false),
                state: tokio::sync::Mutex::new(State::NotTried),
            })
        });
        Self {
            key,
            patience,
            peers: known.collect(),
            endpoints: Default::default(),
            receive: settings.receive_bytes_per_second.map(Bucket::new),
            notes: Mutex::default(),
        }
    }

    /// The peers that may be asked, in order.
    pub fn peers(&self) -> &[Known] {
        &self.peers
    }

    /// What the user may wonder about; it is taken from here when there is somebody to
    /// tell.
    pub fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < MAX_NOTES && !notes.contains(&note) {
            notes.push(note);
        }
    }

    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks a peer; what follows its answer is still in the stream.
    pub async fn ask(
        &self,
        known: &Known,
        request: &Request,
    ) -> Result<(Answer, Incoming<'_>), AskError> {
        match self.ask_once(known, request).await {
            // A connection that nobody used may be closed at any time.
            Err(AskError::Lost { .. }) => self.ask_once(known, request).await,
            outcome => outcome,
        }
    }

    async fn ask_once(
        &self,
        known: &Known,
        request: &Request,
    ) -> Result<(Answer, Incoming<'_>), AskError> {
        let connection = self.connection(known).await?;
        let request = message::encode(request).map_err(|error| AskError::Failed {
            problem: error.to_string(),
        })?;
        let (mut send, receive) = self.in_time(connection.open_bi()).await??;
        let sent = self.in_time(send.write_all(&request)).await?;
        sent?;
        // It cannot have been finished before.
        let _ = send.finish();
        let mut incoming = Incoming {
            session: self,
            stream: receive,
        };
        let stream = &mut incoming.stream;
        let answer = self
            .in_time(message::receive(stream, MAX_ANSWER_BYTES))
            .await??;
        Ok((answer, incoming))
    }

    /// Takes note of what came of asking a peer, and of a peer that is not to be asked
    /// again.
    pub fn failed(&self, known: &Known, problem: AskError) -> Attempt {
        let peer = known.peer.key;
        if problem.is_wrong() {
            known.distrusted.store(true, Ordering::Relaxed);
            self.note(format!(
                "peer {peer} at {} is not asked any more: {problem}",
                known.address
            ));
        } else if !matches!(problem, AskError::NotHere | AskError::Distrusted) {
            self.note(format!("peer {peer} at {}: {problem}", known.address));
        }
        known.attempt(problem)
    }

    /// Does not wait with the next connection to a peer that could not be reached.
    pub async fn try_again(&self, known: &Known) {
        let mut state = known.state.lock().await;
        if matches!(*state, State::Unreachable(..)) {
            *state = State::NotTried;
        }
    }

    async fn connection(&self, known: &Known) -> Result<Connection, AskError> {
        if known.distrusted.load(Ordering::Relaxed) {
            return Err(AskError::Distrusted);
        }
        let mut state = known.state.lock().await;
        match &*state {
            State::Open(connection) if connection.close_reason().is_none() => {
                return Ok(connection.clone());
            }
            State::Unreachable(since, error) if since.elapsed() < self.patience.retry => {
                return Err(error.clone());
            }
            _ => {}
        }
        match self.connect(known).await {
            Ok(connection) => {
                *state = State::Open(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                *state = State::Unreachable(Instant::now(), error.clone());
                Err(error)
            }
        }
    }

    async fn connect(&self, known: &Known) -> Result<Connection, AskError> {
        let unreachable = |reason: String| AskError::Unreachable { reason };
        let crypto = tls::client(&self.key, known.peer.key)
            .map_err(|error| unreachable(error.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport::parameters(&self.patience)));
        let endpoint = self
            .endpoint(known.address)
            .map_err(|error| unreachable(error.to_string()))?;
        // The name is of no meaning: the key is what is checked.
        let connecting = endpoint
            .connect_with(config, known.address, "mote")
            .map_err(|error| unreachable(error.to_string()))?;
        match timeout(self.patience.connect, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => match AskError::from(error) {
                AskError::Lost { reason } => Err(unreachable(reason)),
                error => Err(error),
            },
            Err(_) => Err(unreachable(format!(
                "no answer within {} s",
                self.patience.connect.as_secs()
            ))),
        }
    }

    fn endpoint(&self, address: SocketAddr) -> std::io::Result<&Endpoint> {
        let (slot, own) = match address {
            SocketAddr::V4(_) => (
                &self.endpoints[0],
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            ),
            SocketAddr::V6(_) => (
                &self.endpoints[1],
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            ),
        };
        if let Some(endpoint) = slot.get() {
            return Ok(endpoint);
        }
        // Within the runtime: this is asynchronous code.
        let endpoint = transport::endpoint(own, None)?;
        Ok(slot.get_or_init(|| endpoint))
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, AskError> {
        let stall = self.patience.stall;
        timeout(stall, work).await.map_err(|_| AskError::Stalled {
            seconds: stall.as_secs(),
        })
    }

    /// Lets the peers know that nothing more is asked, as far as that takes no time.
    pub fn close(&self) {
        for endpoint in self.endpoints.iter().filter_map(OnceLock::get) {
            endpoint.close(Code::Done.into(), b"");
        }
    }

    /// Waits until they have been told.
    pub async fn closed(&self) {
        for endpoint in self.endpoints.iter().filter_map(OnceLock::get) {
            endpoint.wait_idle().await;
        }
    }
}

/// What follows an answer.
pub(super) struct Incoming<'s> {
    session: &'s Session,
    stream: RecvStream,
}

impl Incoming<'_> {
    /// The stream alone, to go on with later.
    pub fn into_stream(self) -> RecvStream {
        self.stream
    }

    /// Receives so many bytes, which the caller has bounded.
    pub async fn bytes(&mut self, count: usize) -> Result<Vec<u8>, AskError> {
        self.session.receive(&mut self.stream, count).await
    }
}

impl Session {
    /// Receives so many bytes, which the caller has bounded, as fast as is allowed.
    pub async fn receive(
        &self,
        stream: &mut RecvStream,
        count: usize,
    ) -> Result<Vec<u8>, AskError> {
        let mut bytes = vec![0; count];
        for part in bytes.chunks_mut(RECEIVE_BYTES) {
            // What is not read is not sent for long.
            bucket::take(&self.receive, part.len()).await;
            self.in_time(stream.read_exact(part)).await??;
        }
        Ok(bytes)
    }
}
