//! The client of OCI registries: pull and push.
//!
//! Source: OCI distribution specification 1.1, and what Docker's registries did
//! before it. How registries are reached is in [`config`], where credentials come
//! from in [`credentials`].
//!
//! [`Client`] is for code that waits: each call returns when it is done. Beneath it,
//! a request goes this way:
//!
//! ```text
//! Client ── runtime ──► session: mirrors, then the registry, again after failures
//!                          │   manifests, download, blobs, referrers, push
//!                          ▼
//!                       transport: tokens (auth), redirects, limits
//!                          │
//!                          ▼
//!                       tls: a client for each set of trusted certificates
//! ```
//!
//! What a registry sends is hostile until its digest has been checked: every body is
//! bounded, every wait ends, and its words are made printable before an error
//! repeats them. Credentials go to the registry they are stored for and to the token
//! server that it names, to no mirror and no target of a redirect.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::runtime::Runtime;

mod answer;
mod auth;
mod blobs;
mod cause;
mod challenge;
pub mod config;
mod content_range;
pub mod credential_helper;
pub mod credentials;
mod download;
mod endpoint;
mod error;
#[cfg(feature = "fuzzing")]
#[allow(missing_docs, reason = "for fuzzing, not for users")]
pub mod fuzzing;
mod manifests;
mod provenance;
mod push;
mod push_manifest;
mod reader;
mod redirect;
mod referrers;
mod resolver;
mod retry;
mod secret;
mod session;
mod text;
mod tls;
mod tokens;
mod transport;
mod upload;

pub use blobs::{BlobRange, MAX_RANGE_BYTES};
use config::Settings;
use credentials::CredentialStore;
use download::Download;
pub use endpoint::{Reference, Repository};
pub use error::{Attempt, ChallengeProblem, Detail, RegistryError};
pub use manifests::{DOCKER_INDEX, DOCKER_MANIFEST, Fetched, OCI_INDEX, OCI_MANIFEST};
pub use provenance::Provenance;
pub use push::{Open, Pushed};
pub use reader::{BlobReader, Cancel};
pub use redirect::RedirectProblem;
pub use secret::Secret;
use session::Session;
pub use tls::TlsError;

/// A client of all registries, for any number of threads.
///
/// Calls wait on the calling thread, and ask `cancelled` about every 100 ms whether
/// to go on; if not, they return [`RegistryError::Cancelled`]. They must not be made
/// from asynchronous code.
pub struct Client {
    session: Arc<Session>,
    runtime: Arc<Runtime>,
}

impl Client {
    /// A client with these settings and credentials.
    pub fn new(settings: Settings, credentials: CredentialStore) -> Result<Self, RegistryError> {
        let runtime =
            Runtime::new("registry").map_err(|source| RegistryError::Runtime { source })?;
        Ok(Self {
            session: Arc::new(Session::new(settings, credentials)),
            runtime: Arc::new(runtime),
        })
    }

    /// A client with the settings of this machine and the credentials of this user.
    pub fn of_this_machine() -> Result<Self, RegistryError> {
        Self::new(
            Settings::of_this_machine()?,
            CredentialStore::of_this_user(),
        )
    }

    /// How registries are reached.
    pub fn settings(&self) -> &Settings {
        &self.session.settings
    }

    /// Fetches a manifest or index of at most `max_bytes`. Asked for by digest, it
    /// has that digest; asked for by tag, the one that the registry announces for
    /// it, if it does. It is not interpreted.
    pub fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        max_bytes: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Fetched, RegistryError> {
        let work = self.session.manifest(repository, reference, max_bytes);
        self.runtime.run(cancelled, work)
    }

    /// The same of the registry itself: no mirror is asked. What the registry has already
    /// and need not be pushed, only the registry knows.
    pub fn manifest_in_registry(
        &self,
        repository: &Repository,
        reference: &Reference,
        max_bytes: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Fetched, RegistryError> {
        let work = self
            .session
            .manifest_in_registry(repository, reference, max_bytes);
        self.runtime.run(cancelled, work)
    }

    /// Fetches a blob of at most `max_bytes`, with the length and the digest that
    /// its descriptor gives.
    pub fn blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        max_bytes: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, RegistryError> {
        let work = blobs::blob(&self.session, repository, descriptor, max_bytes);
        self.runtime.run(cancelled, work)
    }

    /// Begins to download a blob of any length. The digest is the caller's to
    /// check. `cancel` is asked for as long as the reader is used.
    pub fn blob_reader(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        cancel: Cancel,
    ) -> Result<BlobReader, RegistryError> {
        let download = self.runtime.run(&*cancel, async {
            let (digest, size) = (descriptor.digest, descriptor.size);
            let sources = blobs::sources(&self.session, repository, digest).await?;
            let mut download = Download::new(&self.session, repository, digest, size, sources);
            download.begin().await?;
            Ok::<_, RegistryError>(download)
        })?;
        Ok(BlobReader::new(&self.runtime, download, cancel))
    }

    /// Fetches a range of a blob, at most [`MAX_RANGE_BYTES`]. Its content is not
    /// verified: no digest covers a range. If it is wrong, [`Provenance::reject`] tells
    /// whether to ask again.
    pub fn blob_range(
        &self,
        repository: &Repository,
        digest: Digest,
        bytes: Range<u64>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<BlobRange, RegistryError> {
        let work = blobs::blob_range(&self.session, repository, digest, bytes);
        self.runtime.run(cancelled, work)
    }

    /// Lists the manifests whose subject is `digest`, those of an artifact type if
    /// one is given. Where the registry has no such list, the tag `sha256-HEX` is
    /// read instead. A manifest without any, or that does not exist, has an empty
    /// list.
    pub fn referrers(
        &self,
        repository: &Repository,
        digest: Digest,
        artifact_type: Option<&str>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let work = self.session.referrers(repository, digest, artifact_type);
        self.runtime.run(cancelled, work)
    }

    /// Whether a repository has a blob, as its registry says.
    pub fn has_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<bool, RegistryError> {
        let work = self.session.has_blob(repository, digest);
        self.runtime.run(cancelled, work)
    }

    /// Puts a blob into a repository, unless it is there, or the registry can take
    /// it from `mount_from`. `open` is called for each try, and must give the same
    /// content each time; its length must be that of the descriptor.
    pub fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        mount_from: Option<&Repository>,
        open: Open<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Pushed, RegistryError> {
        let work = self
            .session
            .push_blob(repository, descriptor, mount_from, open);
        self.runtime.run(cancelled, work)
    }

    /// Puts a manifest or index into a repository, and returns its digest. The
    /// blobs it names must be there. If it has a subject, it is listed among the
    /// referrers of that: by the registry, or under the tag `sha256-HEX`.
    pub fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        bytes: &[u8],
        media_type: &str,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Digest, RegistryError> {
        let work = self
            .session
            .push_manifest(repository, reference, bytes, media_type);
        self.runtime.run(cancelled, work)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
