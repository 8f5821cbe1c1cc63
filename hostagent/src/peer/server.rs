//! The node as peers ask it: who is let in, and how many at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, Incoming, ServerConfig};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::answer::Answers;
use super::bucket::Bucket;
use super::config::Settings;
use super::error::PeerError;
use super::key::{NodeKey, PublicKey};
use super::tls;
use super::transport::{self, Code, MAX_CONNECTIONS, MAX_HANDSHAKES, MAX_STREAMS, Patience};
use crate::runtime::Runtime;
use crate::store::Store;

/// How long the end waits for peers to be told.
const GOODBYE: Duration = Duration::from_secs(1);
/// The most notes that a process makes; peers cause them.
const MAX_NOTES: usize = 1000;

/// Where notes go: lines for whoever runs the server.
pub type Notes = Box<dyn Fn(&str) + Send + Sync>;

/// Gives blobs to peers until it is dropped.
pub struct Server {
    endpoint: Endpoint,
    address: SocketAddr,
    key: PublicKey,
    runtime: Runtime,
}

/// What all connections share.
struct Shared {
    answers: Arc<Answers>,
    patience: Patience,
    peers: BTreeMap<PublicKey, Allowance>,
    notes: Arc<Notepad>,
}

/// What one peer may have at a time.
struct Allowance {
    connections: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// Notes, each once, and no more than [`MAX_NOTES`].
pub(super) struct Notepad {
    notes: Notes,
    seen: Mutex<BTreeSet<String>>,
}

impl Notepad {
    pub fn new(notes: Notes) -> Self {
        let seen = Mutex::default();
        Self { notes, seen }
    }

    pub fn note(&self, note: String) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MAX_NOTES && !seen.contains(&note) {
            (self.notes)(&note);
            seen.insert(note);
        }
    }
}

impl Server {
    /// Begins to give the blobs of `store` to the peers of `settings`.
    pub fn start(
        store: Store,
        settings: &Settings,
        key: &NodeKey,
        notes: Notes,
    ) -> Result<Self, PeerError> {
        Self::with_patience(store, settings, key, notes, Patience::default())
    }

    pub(super) fn with_patience(
        store: Store,
        settings: &Settings,
        key: &NodeKey,
        notes: Notes,
        patience: Patience,
    ) -> Result<Self, PeerError> {
        let address = settings.listen.ok_or(PeerError::NoListen)?;
        let listed: BTreeSet<_> = settings.peers.iter().map(|peer| peer.key).collect();
        let allowance = |key: &PublicKey| {
            let allowance = Allowance {
                connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
                streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            };
            (*key, allowance)
        };
        let notes = Arc::new(Notepad::new(notes));
        let limit = settings.send_bytes_per_second.map(Bucket::new);
        let shared = Arc::new(Shared {
            answers: Arc::new(Answers::new(store, limit, patience, Arc::clone(&notes))),
            patience,
            peers: listed.iter().map(allowance).collect(),
            notes,
        });
        let tls = tls::server(key, listed).map_err(|source| PeerError::Tls { source })?;
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        config
            .transport_config(Arc::new(transport::parameters(&patience)))
            .max_incoming(MAX_HANDSHAKES)
            .migration(false);
        let runtime = Runtime::new("peers").map_err(|source| PeerError::Runtime { source })?;
        let endpoint = runtime
            .within(|| transport::endpoint(address, Some(config)))
            .map_err(|source| PeerError::Listen { address, source })?;
        let bound = endpoint
            .local_addr()
            .map_err(|source| PeerError::Listen { address, source })?;
        runtime.spawn(accept(endpoint.clone(), shared));
        Ok(Self {
            endpoint,
            address: bound,
            key: key.public(),
            runtime,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What peers know it by.
    pub fn key(&self) -> PublicKey {
        self.key
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.endpoint.close(Code::Ending.into(), b"this node ends");
        let _ = self.runtime.run(&|| false, async {
            let _ = timeout(GOODBYE, self.endpoint.wait_idle()).await;
            Ok::<_, PeerError>(())
        });
    }
}

/// Lets peers in until the endpoint is closed.
async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        // Nothing is spent on who may not even receive what is sent to its address.
        if !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        match Arc::clone(&handshakes).try_acquire_owned() {
            Ok(permit) => {
                tokio::spawn(connected(incoming, permit, Arc::clone(&shared)));
            }
            Err(_) => incoming.refuse(),
        }
    }
}

async fn connected(incoming: Incoming, handshake: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let address = incoming.remote_address();
    let Ok(connecting) = incoming.accept() else {
        return;
    };
    let connection = match timeout(shared.patience.connect, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(ConnectionError::TransportError(error))) => {
            shared.notes.note(format!(
                "refused {}: its key is not listed, or it is no node ({})",
                address.ip(),
                error.code
            ));
            return;
        }
        _ => return,
    };
    drop(handshake);
    let Some((key, allowance)) = peer_of(&connection).and_then(|key| {
        let allowance = shared.peers.get(&key)?;
        Some((key, allowance))
    }) else {
        // The handshake has seen to it; once more, before anything is read.
        connection.close(Code::Misbehaved.into(), b"");
        return;
    };
    let Ok(_permit) = allowance.connections.try_acquire() else {
        connection.close(Code::TooMany.into(), b"too many connections of one peer");
        return;
    };
    requests(&connection, key, &allowance.streams, &shared).await;
}

/// Answers the requests of a connection until it ends.
async fn requests(
    connection: &Connection,
    key: PublicKey,
    streams: &Arc<Semaphore>,
    shared: &Arc<Shared>,
) {
    let active = Arc::new(AtomicUsize::new(0));
    loop {
        let (send, receive) = match timeout(shared.patience.unused, connection.accept_bi()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) => return,
            Err(_) if active.load(Ordering::Relaxed) > 0 => continue,
            Err(_) => {
                connection.close(Code::Done.into(), b"nothing was asked");
                return;
            }
        };
        // Until then no more are accepted, and QUIC lets no more than so many be opened.
        let Ok(permit) = Arc::clone(streams).acquire_owned().await else {
            return;
        };
        let answers = Arc::clone(&shared.answers);
        active.fetch_add(1, Ordering::Relaxed);
        let active = Arc::clone(&active);
        tokio::spawn(async move {
            answers.answer(key, send, receive).await;
            active.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
        });
    }
}

/// The key that the other side has proved to have.
fn peer_of(connection: &Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?;
    let keys = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    PublicKey::from_spki(keys.first()?)
}
