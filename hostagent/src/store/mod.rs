//! The content store: what has been verified and converted, kept by digest.
//!
//! ```text
//! $MOTE_ROOT                          /var/lib/mote unless set
//! ├── format                          the version of this layout
//! ├── node.key                        what peers know this node by, made on first need
//! ├── images.json                     names, and what each image is made of
//! ├── images.copy.json                the same again
//! ├── content/sha256/HEX              manifests and image configurations, as they came
//! ├── blobs/HASH/data                 bytes, named by their BLAKE3 hash
//! │              /outboard             the hash tree over them (crate `outboard`)
//! │              /blocks               the values of its blocks of 4 KiB, for a blob of a
//! │                                    disk that was made here
//! ├── layers/vN/DIFF_ID.json           which blob a layer was converted to
//! ├── disks/vN/KEY.json                which blob is the tree over an image's layers
//! ├── partial/HASH-BYTES              blobs that are not all here yet (see [`partial`])
//! ├── boot.json                       which blobs are the guests' kernel and initrd
//! ├── lazy/, accesses/                images of such blobs (see [`lazy`])
//! ├── quarantine/                     what was not what it should be: blobs, by HASH, and
//! │                                    manifests and configurations, by sha256-HEX
//! ├── leases/                         what each living process needs
//! ├── locks/                          one file for each thing being made
//! ├── reserve                         room that is kept for making room (see [`reserve`])
//! ├── run/                            one file for each name in use
//! └── staging/                        what is not whole yet
//! ```
//!
//! Everything is made under `staging`, brought to disk, renamed into place, and
//! the rename brought to disk; so a reader sees all of a thing or nothing, and
//! after a crash at any point the store is as it was before or after. An image is
//! recorded last, when all it needs is there and on disk. Each record has its own hash (see
//! [`record`]). Which waits for the disk
//! there are, and why, is in `docs/rfd/0007-content.md`. What a dead process left in
//! `staging` is removed when the store is next opened (see [`staging`]). Two
//! processes that want the same layer wait for one another (see [`lock`]). What no image
//! and no living process needs is removed when an image is (see [`collect`], [`leases`]).
//!
//! A layer is found by its `diff_id` and the version of the converter: the converter is
//! deterministic, so these two say which blob it becomes. A blob is read in one way only:
//! each piece of it is verified by its hash tree, on the host by [`blobs`], and for guests
//! by the VMM.

pub mod blob;
pub mod blobs;
mod boot;
mod collect;
mod convert;
mod documents;
mod durable;
mod error;
mod images_file;
mod import;
mod incoming;
mod layers;
mod lazy;
mod leases;
pub mod limits;
pub mod lock;
mod made;
mod merged;
mod partial;
mod quarantine;
pub(crate) mod record;
mod records;
mod reserve;
mod spool;
pub mod staging;
mod suspects;
mod usage;
mod verify;

use std::io;
use std::path::{Path, PathBuf};

pub use blob::BlobIdentity;
pub use blobs::{Blob, BlobError, StreamReader};
pub use boot::{BootFile, BootRecord};
pub use collect::Collected;
pub use convert::ConvertError;
pub use error::StoreError;
pub(crate) use error::is_out_of_space;
pub use import::{ImportError, Imported};
pub(crate) use layers::TarParts;
pub use layers::{CONVERTER_VERSION, StoredLayer};
pub use lazy::{ImageParts, LayerParts, LazyImage};
pub use leases::Lease;
pub use merged::MergedImage;
pub use partial::PartialBlob;
pub use records::{Removed, StoredImage};
pub use spool::is_compressed;
pub use suspects::{Suspect, Suspects, Verdict};
pub use usage::{ImageUsage, StoreUsage, Usage};
pub use verify::{Fate, Report, Verified, Wrong};

use crate::image::digest::Digest;
use crate::running::Registry;
use durable::{create_directory, publish, sync_directory, write_secret_file};
use lock::FileLock;
use staging::Staging;

/// Where the store is unless `MOTE_ROOT` says otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/mote";
/// The version of the layout above.
const FORMAT: u32 = 3;
/// What is attempted when a store is opened that is not there yet.
const MAKING: &str = "making the store";

/// An open store. Any number of processes may have it open.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: erofs::Limits,
}

impl Store {
    /// `MOTE_ROOT`, or [`DEFAULT_ROOT`].
    pub fn default_root() -> PathBuf {
        std::env::var_os("MOTE_ROOT")
            .filter(|root| !root.is_empty())
            .map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from)
    }

    /// Opens the store, makes it if it is not there, and removes what dead
    /// processes left behind.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let opened = |source| match is_out_of_space(&source) {
            true => StoreError::io(root, MAKING, source),
            false => StoreError::Open {
                path: root.to_owned(),
                source,
            },
        };
        create_directory(root).map_err(opened)?;
        // Descriptors and messages must not depend on the working directory.
        let store = Self {
            root: root.canonicalize().map_err(opened)?,
            limits: erofs::Limits::default(),
        };
        for directory in [
            store.staging(),
            store.locks(),
            store.run_names(),
            store.running_directory(),
            store.root.join("content/sha256"),
            store.blobs(),
            store.quarantined(),
            store.leases(),
            store.partials(),
            store.lazy_records(),
            store.access_records(),
            store.layers(),
            store.disks(),
        ] {
            create_directory(&directory).map_err(opened)?;
        }
        store.check_format()?;
        store
            .remove_stale()
            .map_err(|source| store.io("removing stale temporaries", source))?;
        store.keep_reserve();
        Ok(store)
    }

    /// The same store, for images that keep to these limits.
    pub fn with_limits(self, limits: erofs::Limits) -> Self {
        Self { limits, ..self }
    }

    /// What images may cost.
    pub(crate) fn limits(&self) -> &erofs::Limits {
        &self.limits
    }

    /// The secret in the file `name` of the store; if there is none, what `make` gives is
    /// put there, for the store's owner only, and is the secret from then on.
    pub(crate) fn secret(
        &self,
        name: &str,
        make: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<Vec<u8>, StoreError> {
        let path = self.root.join(name);
        let failed = |source| self.io(format!("reading or making {name}"), source);
        let _lock = FileLock::acquire_brief(&self.locks().join(name)).map_err(failed)?;
        match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.map_err(failed),
        }
        let staging = self.scratch()?;
        let part = staging.path().join(name);
        let secret = make().map_err(failed)?;
        write_secret_file(&part, &secret)
            .and_then(|()| publish(&part, &path))
            .map_err(failed)?;
        Ok(secret)
    }

    /// Whether blobs of these lengths keep to the limits, which others have not kept when
    /// they made them.
    pub fn admits(&self, blobs: impl IntoIterator<Item = u64>) -> Result<(), StoreError> {
        let limit = self.limits.max_blob_bytes;
        match blobs.into_iter().find(|bytes| *bytes > limit) {
            Some(bytes) => Err(StoreError::BlobTooLarge { bytes, limit }),
            None => Ok(()),
        }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A place in the store's file system for a file that is needed for a while.
    pub fn scratch(&self) -> Result<Staging, StoreError> {
        Staging::create(&self.staging())
            .map_err(|source| self.io("making a temporary directory", source))
    }

    /// Takes a name for a running microVM; `None` if one of that name lives.
    pub fn take_run_name(&self, name: &str) -> Result<Option<FileLock>, StoreError> {
        self.run_names_gate()
            .and_then(|_gate| FileLock::try_acquire(&self.run_names().join(name)))
            .map_err(|source| self.io(format!("taking the name {name}"), source))
    }

    /// The microVMs that run.
    pub fn running(&self) -> Registry {
        Registry::new(self.running_directory())
    }

    fn running_directory(&self) -> PathBuf {
        self.root.join("running")
    }

    fn remove_stale(&self) -> io::Result<()> {
        Staging::remove_stale(&self.staging())?;
        FileLock::remove_stale(&self.locks())?;
        let _gate = self.run_names_gate()?;
        FileLock::remove_stale(&self.run_names())
    }

    /// Held while names are tried, so that looking for stale ones makes none
    /// look taken.
    fn run_names_gate(&self) -> io::Result<FileLock> {
        FileLock::acquire_brief(&self.locks().join("run-names"))
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.root.join("format");
        let found = match std::fs::read(&path) {
            Ok(bytes) => match format_of(&bytes) {
                Some(found) => found,
                // What damage has left says nothing of another version, and each record
                // of one would be refused by itself.
                None => {
                    self.write_record(&path, &FORMAT, || "mending the format".to_owned())?;
                    FORMAT
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.begin_layout()?;
                self.write_record(&path, &FORMAT, || MAKING.to_owned())?;
                FORMAT
            }
            Err(error) => return Err(self.io("reading the format", error)),
        };
        if found == FORMAT {
            return Ok(());
        }
        Err(StoreError::Format {
            root: self.root.clone(),
            found,
            supported: FORMAT,
        })
    }

    /// Brings to disk what a new store consists of.
    fn begin_layout(&self) -> Result<(), StoreError> {
        let failed = |source| self.io(MAKING, source);
        // Whoever made what is there may have been killed before it was on disk.
        let above = self.root.parent().map(Path::to_owned);
        let within = ["content", "layers", "disks"].map(|name| self.root.join(name));
        for directory in within {
            sync_directory(&directory).map_err(failed)?;
        }
        match above.map_or(Ok(()), |above| sync_directory(&above)) {
            // One that this user may not read: whoever made the root there has.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced.map_err(failed),
        }
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    fn run_names(&self) -> PathBuf {
        self.root.join("run")
    }

    fn layers(&self) -> PathBuf {
        self.root.join(format!("layers/v{CONVERTER_VERSION}"))
    }

    fn disks(&self) -> PathBuf {
        self.root.join(format!("disks/v{CONVERTER_VERSION}"))
    }

    fn content(&self, digest: Digest) -> PathBuf {
        self.root.join("content/sha256").join(digest.hex())
    }

    fn io(&self, action: impl Into<String>, source: io::Error) -> StoreError {
        StoreError::io(&self.root, action, source)
    }
}

/// The version that a `format` names; `None` if it is not what any version wrote.
fn format_of(bytes: &[u8]) -> Option<u32> {
    // Before version 3 it was a number alone.
    record::decode(bytes)
        .or_else(|_| serde_json::from_slice(bytes))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_store_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("deep/store");
        let store = Store::open(&root).unwrap();
        for path in [store.root().to_owned(), store.layers(), store.staging()] {
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn a_store_of_another_version_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        Store::open(directory.path()).unwrap();
        let newer = record::encode(&(FORMAT + 1)).unwrap();
        for (bytes, version) in [(&newer[..], FORMAT + 1), (b"2\n", 2)] {
            std::fs::write(directory.path().join("format"), bytes).unwrap();
            match Store::open(directory.path()).unwrap_err() {
                StoreError::Format { found, .. } => assert_eq!(found, version),
                error => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_format_with_a_changed_bit_is_not_that_of_another_version() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("format");
        Store::open(directory.path()).unwrap();
        let written = std::fs::read(&path).unwrap();
        for bit in 0..written.len() * 8 {
            let mut changed = written.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &changed).unwrap();
            Store::open(directory.path()).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), written);
    }

    #[test]
    fn opening_removes_what_a_dead_process_left() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let stale = store.staging().join("4711-0");
        std::fs::create_dir(&stale).unwrap();
        std::fs::write(stale.join("data"), [0; 4096]).unwrap();
        let living = store.scratch().unwrap();
        Store::open(directory.path()).unwrap();
        assert!(!stale.exists());
        assert!(living.path().exists());
    }

    #[test]
    fn a_name_is_free_again_once_its_holder_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let held = store.take_run_name("web").unwrap().unwrap();
        assert!(store.take_run_name("web").unwrap().is_none());
        assert!(store.take_run_name("db").unwrap().is_some());
        drop(held);
        assert!(store.take_run_name("web").unwrap().is_some());
    }
}
