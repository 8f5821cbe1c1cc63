//! Nodes that give each other blobs, and with them images.
//!
//! Off unless there is a `peers.toml` ([`config`]): it says which other nodes there are, by
//! their keys, and where they are. There is no discovery, no relay and no name service.
//!
//! ```text
//! Client ── session: a connection for each peer ──QUIC──► server: who is let in
//!   │                                                        │
//!   │ fetch: documents checked by digest                     ▼
//!   │ blob:  pieces verified, the next peer where        answer: requests, from the
//!   │        one fails                                   store, verified once more
//!   │ ranges: the same for who waits, not for long
//!   ▼
//! layer: blob + skeleton = tar stream ──► Store::import, as from a registry
//! ```
//!
//! # Protocol
//!
//! QUIC version 1 with TLS 1.3, ALPN `mote-peer/1`. Both sides have a raw Ed25519 public key
//! (RFC 7250) in place of a certificate. A server ends the handshake of a key that is not in
//! its `peers.toml`; a client that of any but the one it has for the address. There is no
//! resumption and no early data, so nothing is read of whom has not proved its key.
//!
//! The client opens a bidirectional stream for each request, sends the request and ends its
//! side. The server sends the answer, what follows it, and ends the stream. Request and
//! answer are JSON behind their length, four bytes, big-endian; fields that a version does
//! not know it passes over.
//!
//! ```text
//! {"blob":{"hash":"blake3:…","groups":[FIRST,END]}}     a range of 16 KiB groups
//!   → {"blob":{"bytes":LENGTH,"has":[[0,GROUPS]]}}      then the pieces
//! {"image":{"id":"sha256:…"}} or {"image":{"name":"…"}}
//!   → {"image":{"id":…,"config_bytes":…,"manifest_bytes":…,"layers":[
//!       {"diff_id":…,"tar_bytes":…,"blob":{"hash":…,"bytes":…},"skeleton":{…}},…]}}
//!                                                       then configuration and manifest
//!   → "not_here", or {"failed":{"problem":"…"}}
//! ```
//!
//! `has` are the groups that the server has, in ascending ranges; what follows goes from the
//! first group asked for to the first that it has not. Today a server has all or nothing.
//! The pieces are in `encoding`: the range, span by span, each with the nodes that verify
//! it. A stream that is given up is reset with a code, such as 1 where the server's own blob
//! is corrupt (`transport`).
//!
//! # Trust
//!
//! A key that is listed may take every blob and image of the store. What it sends is
//! believed nothing: each group of a blob is verified by its hash before it is used; the
//! configuration of an image has the digest asked for; of what a layer consists the peer
//! says, and the tar stream that makes must have the `diff_id` of the configuration. It is
//! then converted here, because its digest says nothing about the metadata of a blob that
//! somebody else has made. Only which image a tag means is up to the peer, if `names = true`
//! says so. A peer that sends something else than it should is not asked again by this
//! process.
//!
//! # Bounds
//!
//! A peer has at most 8 connections and 16 requests at a time; before a key is proved, 32
//! handshakes are under way together, from addresses that have answered. At most 1 MiB of a
//! request is under way and not read, and a fetch has four at a time. Who sends or takes nothing for 20 seconds is given
//! up, a connection without a sign of life after 10, one without a request after 60.

mod answer;
mod blob;
mod bucket;
pub mod config;
mod encoding;
mod error;
mod fetch;
#[cfg(feature = "fuzzing")]
#[allow(missing_docs, reason = "for fuzzing, not for users")]
pub mod fuzzing;
mod key;
mod layer;
mod mend;
mod message;
mod ranges;
mod server;
mod session;
mod tls;
mod transport;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use config::Settings;
pub use error::{AskError, Attempt, PeerError};
pub use key::{KEY_FILE, KeyError, NodeKey, PublicKey, PublicKeyError};
pub use mend::{Mended, mend};
pub(crate) use ranges::Need;
pub use ranges::RangeClient;
pub use server::{Notes, Server};
use session::Session;
use transport::Patience;

use crate::runtime::Runtime;
use crate::store::Store;

/// Tells whether what is fetched is still wanted; asked about every 100 ms, on the thread
/// that waits.
pub type Cancel = Arc<dyn Fn() -> bool + Send + Sync>;

/// How long the end waits for peers to be told.
const GOODBYE: Duration = Duration::from_millis(200);

/// Asks peers, for any number of threads.
///
/// Calls wait on the calling thread, and ask about every 100 ms whether to go on. They must
/// not be made from asynchronous code.
pub struct Client {
    session: Arc<Session>,
    runtime: Arc<Runtime>,
}

impl Client {
    /// With the `peers.toml` of this machine and the key of the store at `root`. `None` if
    /// there is no such file, or no peer in it that may be asked.
    pub fn of_this_machine(root: &Path) -> Result<Option<Self>, PeerError> {
        let found = Self::asked_by_this_machine(root)?;
        found
            .map(|(settings, key)| Self::new(&settings, key))
            .transpose()
    }

    fn asked_by_this_machine(root: &Path) -> Result<Option<(Settings, NodeKey)>, PeerError> {
        let settings = Settings::of_this_machine()?;
        let asked = |settings: &Settings| settings.peers.iter().any(|peer| peer.address.is_some());
        let Some(settings) = settings.filter(asked) else {
            return Ok(None);
        };
        let key = NodeKey::of(&Store::open(root)?)?;
        Ok(Some((settings, key)))
    }

    /// With these settings and this key.
    pub fn new(settings: &Settings, key: NodeKey) -> Result<Self, PeerError> {
        Self::with_patience(settings, key, Patience::default())
    }

    fn with_patience(
        settings: &Settings,
        key: NodeKey,
        patience: Patience,
    ) -> Result<Self, PeerError> {
        let runtime = Runtime::new("peers").map_err(|source| PeerError::Runtime { source })?;
        Ok(Self {
            session: Arc::new(Session::new(key, settings, patience)),
            runtime: Arc::new(runtime),
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.session.close();
        let _ = self.runtime.run(&|| false, async {
            let _ = timeout(GOODBYE, self.session.closed()).await;
            Ok::<_, PeerError>(())
        });
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
