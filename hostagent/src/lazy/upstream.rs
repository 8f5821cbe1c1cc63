//! Where missing parts of blobs are had from. Nothing is kept that has not been verified;
//! who gives something else is asked no more, as long as there is somebody else.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;

use outboard::GROUP_BYTES;

use super::fetch::FetchError;
use crate::image::digest::Digest;
use crate::image::hashing::HashingReader;
use crate::image::manifest::Descriptor;
use crate::registry::{Cancel, Client, Repository};
use crate::store::{BlobError, PartialBlob, Store, StoreError, is_out_of_space};

/// Who has the blobs of an image.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'u> {
    /// The store they are for.
    pub store: &'u Store,
    /// The client of registries.
    pub client: &'u Client,
    /// The repository, which its mirrors are asked for first.
    pub repository: &'u Repository,
}

impl Upstream<'_> {
    /// Fetches groups of a blob, of which it has all, and writes them; returns how many
    /// bytes that were. `tell` hears who gave others.
    pub fn groups(
        &self,
        partial: &PartialBlob,
        digest: Digest,
        groups: Range<u64>,
        tell: &dyn Fn(&FetchError),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<u64, FetchError> {
        let start = groups.start * GROUP_BYTES;
        let end = (groups.end * GROUP_BYTES).min(partial.identity().bytes);
        // Ends: each turn but the last has rejected a mirror.
        loop {
            let range = start..end;
            let client = self.client;
            let found = client.blob_range(self.repository, digest, range, cancelled)?;
            let error = match partial.write(groups.start, &found.bytes) {
                Ok(()) => return Ok(end - start),
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
            let reader = self
                .client
                .blob_reader(self.repository, tree, cancel.clone())?;
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
