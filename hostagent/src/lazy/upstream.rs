//! Where missing parts of blobs are had from. Nothing is kept that has not been verified;
//! who gives something else is asked no more, as long as there is somebody else.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use outboard::GROUP_BYTES;

use super::fetch::FetchError;
use crate::image::digest::Digest;
use crate::image::hashing::HashingReader;
use crate::image::manifest::Descriptor;
use crate::peer::{Need, PeerError, RangeClient};
use crate::registry::{Cancel, Client, RegistryError, Repository};
use crate::store::{BlobError, PartialBlob, Store, StoreError, is_out_of_space};

/// Whom to ask for what is missing of an image.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Registries and their mirrors.
    pub registries: Arc<Client>,
    /// Peers, if there are any; they are asked first.
    pub peers: Option<Arc<RangeClient>>,
}

impl Clients {
    /// With the peers that this machine may ask, by the key of the store at `root`.
    pub fn with_peers_of_this_machine(
        registries: &Arc<Client>,
        root: &Path,
    ) -> Result<Self, PeerError> {
        Ok(Self {
            registries: Arc::clone(registries),
            peers: RangeClient::of_this_machine(root)?.map(Arc::new),
        })
    }
}

/// Who has the blobs of an image.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'u> {
    /// The store they are for.
    pub store: &'u Store,
    /// Whom to ask.
    pub clients: &'u Clients,
    /// The repository that has them.
    pub repository: &'u Repository,
}

impl Upstream<'_> {
    /// Fetches groups of a blob, of which it has all, and writes them; returns how many
    /// bytes that were. `tell` hears who gave others, or nothing in time.
    pub fn groups(
        &self,
        partial: &PartialBlob,
        digest: Digest,
        mut groups: Range<u64>,
        tell: &dyn Fn(&FetchError),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, FetchError> {
        let offset = |group: u64| (group * GROUP_BYTES).min(partial.identity().bytes);
        let bytes = offset(groups.end) - offset(groups.start);
        if let Some(peers) = &self.clients.peers {
            let all = groups.clone();
            groups.start = self.of_peers(peers, partial, all, Need::Others, tell, cancelled)?;
        }
        if groups.start >= groups.end {
            return Ok(bytes);
        }
        let failed = match self.of_registry(partial, digest, groups.clone(), tell, cancelled) {
            Ok(()) => return Ok(bytes),
            Err(error) => error,
        };
        let is_final = matches!(
            failed,
            FetchError::Registry(RegistryError::Cancelled) | FetchError::Store(_)
        );
        if let (false, Some(peers)) = (is_final, &self.clients.peers) {
            let (end, rest) = (groups.end, groups);
            let come = self.of_peers(peers, partial, rest, Need::Last, tell, cancelled)?;
            if come >= end {
                return Ok(bytes);
            }
        }
        Err(failed)
    }

    /// What peers have of it, in order; returns up to where that is.
    fn of_peers(
        &self,
        peers: &RangeClient,
        partial: &PartialBlob,
        groups: Range<u64>,
        need: Need,
        tell: &dyn Fn(&FetchError),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, FetchError> {
        let identity = partial.identity();
        let mut write = |first: u64, bytes: &[u8]| {
            let written = partial.write(first, bytes);
            written.map_err(|error| FetchError::of_write(self.store, &"peers", error))
        };
        let note = |text: String| tell(&FetchError::Peer(text));
        peers.fetch(identity, groups, need, &mut write, &note, cancelled)
    }

    fn of_registry(
        &self,
        partial: &PartialBlob,
        digest: Digest,
        groups: Range<u64>,
        tell: &dyn Fn(&FetchError),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), FetchError> {
        let start = groups.start * GROUP_BYTES;
        let end = (groups.end * GROUP_BYTES).min(partial.identity().bytes);
        // Ends: each turn but the last has rejected a mirror.
        loop {
            let range = start..end;
            let registries = &self.clients.registries;
            let found = registries.blob_range(self.repository, digest, range, cancelled)?;
            let error = match partial.write(groups.start, &found.bytes) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let is_theirs = matches!(error, BlobError::Corrupt { .. });
            match is_theirs.then(|| found.provenance.reject()).flatten() {
                Some(mirrors) => tell(&FetchError::Blob {
                    repository: format!("mirror {mirrors} of {}", self.repository),
                    source: error,
                }),
                None => return Err(FetchError::of_write(self.store, self.repository, error)),
            }
        }
    }

    /// Writes a hash tree to a file as it comes. The store verifies it by the blob's hash;
    /// its digest tells whether others are to be asked for it.
    pub fn tree(
        &self,
        tree: &Descriptor,
        mut file: &File,
        cancel: &Cancel,
    ) -> Result<(), FetchError> {
        let failed = |error: io::Error| match is_out_of_space(&error) {
            true => StoreError::io(self.store.root(), "fetching a hash tree", error).into(),
            false => FetchError::Tree(error),
        };
        // Ends: each turn but the last has rejected a mirror.
        loop {
            let registries = &self.clients.registries;
            let reader = registries.blob_reader(self.repository, tree, cancel.clone())?;
            let provenance = reader.provenance();
            let mut reader = HashingReader::new(reader).map_err(FetchError::Tree)?;
            io::copy(&mut reader, &mut file).map_err(failed)?;
            let found = reader.finish().map_err(FetchError::Tree)?;
            if found == tree.digest || provenance.reject().is_none() {
                return Ok(());
            }
            file.set_len(0)
                .and_then(|()| file.seek(SeekFrom::Start(0)))
                .map_err(failed)?;
        }
    }
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
