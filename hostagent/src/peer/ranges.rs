//! Ranges of blobs for somebody who waits, and has a registry to ask too.
//!
//! Peers are near, so they are asked first; but none gets long to answer. Who has kept
//! somebody waiting is left alone for a while, and so is, for one blob, who does not have
//! it. Only when the registry has failed are they asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outboard::{BlobHash, GROUP_BYTES};
use tokio::time::timeout;

use super::Client;
use super::blob::BlobStream;
use super::config::Settings;
use super::error::{AskError, PeerError};
use super::key::NodeKey;
use super::transport::Patience;
use crate::runtime::Cancelled;
use crate::store::BlobIdentity;

/// For a connection to come about, and for the next bytes.
const PATIENCE: Duration = Duration::from_secs(1);
/// For all that is asked of one peer at a time, but for what this node's own limit on what
/// is received takes.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
/// The same if there is nobody else to ask.
const LAST_PATIENCE: Duration = Duration::from_secs(20);
/// Requests that may share that limit.
const REQUESTS: u32 = 4;
/// The most that is told of peers, each thing once.
const MAX_TOLD: usize = 100;

/// Asks peers for ranges of blobs, for any number of threads that wait.
#[derive(Debug)]
pub struct RangeClient {
    client: Client,
    receive_bytes_per_second: Option<u64>,
    /// Which peer is not asked until when: for one blob, or for any.
    resting: Mutex<BTreeMap<(usize, Option<BlobHash>), Instant>>,
    told: Mutex<BTreeSet<String>>,
}

/// Takes groups that have been verified, with the number of the first.
pub(crate) type Take<'t, E> = dyn FnMut(u64, &[u8]) -> Result<(), E> + 't;

/// How much depends on peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Others are asked next.
    Others,
    /// Others have failed: those that were left alone are asked again.
    Last,
}

/// Why the rest did not come from a peer.
enum Failure<E> {
    Peer(PeerError),
    /// It did, and could not be taken.
    Taker(E),
}

impl RangeClient {
    /// With the `peers.toml` of this machine and the key of the store at `root`. `None` if
    /// there is no such file, or no peer in it that may be asked.
    pub fn of_this_machine(root: &Path) -> Result<Option<Self>, PeerError> {
        let found = Client::asked_by_this_machine(root)?;
        found
            .map(|(settings, key)| Self::new(&settings, key))
            .transpose()
    }

    /// With these settings and this key.
    pub fn new(settings: &Settings, key: NodeKey) -> Result<Self, PeerError> {
        let patience = Patience {
            connect: PATIENCE,
            stall: PATIENCE,
            ..Patience::default()
        };
        Ok(Self {
            client: Client::with_patience(settings, key, patience)?,
            receive_bytes_per_second: settings.receive_bytes_per_second,
            resting: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// Fetches groups of a blob, which has the length that a registry says, in order, and
    /// hands them to `take`. Returns up to where they have come: the end, or where nobody
    /// had the next one in time. `note` hears of peers that failed, of each failure once.
    pub(crate) fn fetch<E: From<Cancelled>>(
        &self,
        identity: BlobIdentity,
        groups: Range<u64>,
        need: Need,
        take: &mut Take<'_, E>,
        note: &dyn Fn(String),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, E> {
        let session = &self.client.session;
        let bound = self.bound(&groups, need);
        let mut next = groups.start;
        for (peer, known) in session.peers().iter().enumerate() {
            if next >= groups.end {
                break;
            }
            if need == Need::Others && self.rests(peer, identity.hash) {
                continue;
            }
            let wanted = next..groups.end;
            let mut stream = BlobStream::of_peer(Arc::clone(session), identity, wanted, peer);
            let reading = async {
                if need == Need::Last {
                    session.try_again(known).await;
                }
                while let Some((bytes, verified)) = stream.next().await.map_err(Failure::Peer)? {
                    let data = &bytes[verified.data];
                    take(verified.offset / GROUP_BYTES, data).map_err(Failure::Taker)?;
                    next = (verified.offset + data.len() as u64).div_ceil(GROUP_BYTES);
                }
                Ok(())
            };
            let outcome = self.client.runtime.run(cancelled, async {
                Ok::<_, E>(timeout(bound, reading).await)
            })?;
            let problem = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(Failure::Taker(error))) => return Err(error),
                Ok(Err(Failure::Peer(error))) => problem_of(error),
                Err(_) => {
                    let seconds = bound.as_secs();
                    let problem = AskError::Slow { seconds };
                    session.failed(known, problem.clone());
                    Some(problem)
                }
            };
            self.rest(peer, identity.hash, problem);
        }
        self.tell(note);
        Ok(next)
    }

    /// How long one peer gets for these groups.
    fn bound(&self, groups: &Range<u64>, need: Need) -> Duration {
        let bytes = (groups.end - groups.start).saturating_mul(GROUP_BYTES);
        let of_limit = |rate: u64| Duration::from_millis(bytes.saturating_mul(1000) / rate.max(1));
        let limited = self.receive_bytes_per_second.map(of_limit);
        let patience = match need {
            Need::Others => REQUEST_PATIENCE,
            Need::Last => LAST_PATIENCE,
        };
        patience + limited.unwrap_or_default() * REQUESTS
    }

    fn rests(&self, peer: usize, hash: BlobHash) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let until = [None, Some(hash)].map(|blob| resting.get(&(peer, blob)));
        let mut until = until.into_iter().flatten();
        until.any(|until| Instant::now() < *until)
    }

    /// Leaves a peer alone for a while. No more is kept than there are peers for each blob.
    fn rest(&self, peer: usize, hash: BlobHash, problem: Option<AskError>) {
        let blob = match problem {
            Some(AskError::NotHere | AskError::Failed { .. } | AskError::Corrupt) => Some(hash),
            _ => None,
        };
        let until = Instant::now() + self.client.session.patience.retry;
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert((peer, blob), until);
    }

    fn tell(&self, note: &dyn Fn(String)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for text in self.client.session.take_notes() {
            if told.len() < MAX_TOLD && told.insert(text.clone()) {
                note(text);
            }
        }
    }
}

/// What the only peer that was asked did.
fn problem_of(error: PeerError) -> Option<AskError> {
    match error {
        PeerError::Nobody { mut attempts, .. } => attempts.pop().map(|attempt| attempt.problem),
        _ => None,
    }
}
