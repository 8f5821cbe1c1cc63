//! Blobs and the record that names them: made aside, on their way to disk, not in their
//! places yet.

use std::path::PathBuf;

use super::blob::BlobIdentity;
use super::durable::Syncing;
use super::leases::Lease;
use super::lock::FileLock;
use super::staging::Staging;
use super::{Store, StoreError};

/// What was made of a layer, or of an image's layers. Unless it is put in its place
/// ([`Store::place`]), it is removed.
#[derive(Debug)]
pub(super) struct Made {
    /// The directory of each blob.
    pub blobs: Vec<(PathBuf, BlobIdentity)>,
    /// The record, and its place.
    pub record: (PathBuf, PathBuf),
    /// All of it, names included.
    pub syncing: Syncing,
    /// What making it was, for errors.
    pub action: String,
    /// Has all of it.
    pub _staging: Staging,
    /// While it is held, nobody else makes the same.
    pub _lock: FileLock,
}

impl Store {
    /// Waits until it is on disk, puts it in its place, and holds on to its blobs. The names
    /// it has then are not on disk: see [`Store::names_of_content`].
    pub(super) fn place(&self, made: Made, lease: &Lease) -> Result<(), StoreError> {
        let failed = |error| self.io(&*made.action, error);
        made.syncing.wait().map_err(failed)?;
        let hashes = made.blobs.iter().map(|(_, blob)| blob.hash).collect();
        self.hold(lease, || Ok::<_, StoreError>(((), hashes)))?;
        for (directory, blob) in &made.blobs {
            self.place_blob(directory, *blob)?;
        }
        // Last: what it names is there.
        let (part, place) = &made.record;
        std::fs::rename(part, place).map_err(failed)
    }
}
