//! Why the store could not do something.

use std::io;
use std::path::{Path, PathBuf};

use outboard::BlobHash;
use rustix::io::Errno;

use super::blob::BlobIdentity;
use super::blobs::BlobError;
use crate::image::digest::Digest;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's directory cannot be made or used.
    #[error("cannot use the store {}; run as root, or set MOTE_ROOT to a directory you can write to", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system is full.
    #[error(
        "no space left for the store {} while {action}: {} MiB are free; free some, or set MOTE_ROOT to a directory on a larger disk",
        root.display(),
        free_bytes >> 20
    )]
    NoSpace {
        /// The store.
        root: PathBuf,
        /// Such as "converting layer …".
        action: String,
        /// What is free now that everything half-made has been removed.
        free_bytes: u64,
    },
    /// Reading or writing failed.
    #[error("{action} failed in the store {}", root.display())]
    Io {
        /// The store.
        root: PathBuf,
        /// Such as "converting layer …".
        action: String,
        /// Why.
        source: io::Error,
    },
    /// What was to be taken in could not be read.
    #[error("the archive cannot be read")]
    Input {
        /// Why.
        source: io::Error,
    },
    /// A record of the store is not what was written.
    #[error("{} of the store is not what was written there; `mote store verify` sees what can be mended, and says what is to be loaded or pulled again", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The store was written by another version.
    #[error("the store {} has format {found}; this version of mote reads format {supported}: remove it, or set MOTE_ROOT to another directory", root.display())]
    Format {
        /// The store.
        root: PathBuf,
        /// What it says.
        found: u32,
        /// What can be read.
        supported: u32,
    },
    /// What the store holds is not what was put there.
    #[error(
        "{what} in the store is corrupt: expected {expected}, found {found}; load the image again with `mote load`, or pull it with `mote pull`"
    )]
    Corrupt {
        /// Such as "layer …".
        what: String,
        /// What was put there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A blob is not what was put there.
    #[error(
        "{what} in the store is corrupt; load the image again with `mote load`, or pull it with `mote pull`"
    )]
    Blob {
        /// Such as "layer …".
        what: String,
        /// What is wrong where.
        source: BlobError,
    },
    /// A file that mote was installed with, or that the user named, is another than it
    /// should be.
    #[error(
        "{what} is {} of {} bytes, not {} of {} bytes as boot.json beside it says; install mote again",
        found.hash, found.bytes, expected.hash, expected.bytes
    )]
    OtherFile {
        /// Such as `/usr/share/mote/vmlinux`.
        what: String,
        /// What it should be.
        expected: BlobIdentity,
        /// What it is.
        found: BlobIdentity,
    },
    /// A blob costs more than this host's administrator allows.
    #[error(
        "a blob of {bytes} bytes exceeds the limit of {limit} bytes, which {} can raise",
        super::limits::FILE_NAME
    )]
    BlobTooLarge {
        /// How long it is.
        bytes: u64,
        /// How long it may be.
        limit: u64,
    },
    /// An archive that is a pipe, or compressed as a whole, is longer than this host's
    /// administrator allows a layer to be.
    #[error(
        "the archive has more than {limit} bytes, decompressed; max_layer_bytes in {} can raise that limit",
        super::limits::FILE_NAME
    )]
    ArchiveTooLarge {
        /// How long it may be.
        limit: u64,
    },
    /// Something an image needs is not there.
    #[error(
        "{what} is missing from the store; load the image again with `mote load`, or pull it with `mote pull`"
    )]
    Missing {
        /// Such as "layer …".
        what: String,
    },
    /// No image of that name or id.
    #[error(
        "no such image: {wanted}; `mote images` lists what is here, `mote pull` pulls an image, `mote load` loads one from an archive or a layout"
    )]
    NoSuchImage {
        /// What was asked for.
        wanted: String,
    },
    /// The start of an id that several images have.
    #[error("{wanted} is the start of several image ids; give more digits")]
    AmbiguousId {
        /// What was asked for.
        wanted: String,
    },
    /// The layers cannot be put on top of one another.
    #[error("the layers of image {image} cannot be merged")]
    Merge {
        /// The image id.
        image: Digest,
        /// Why.
        source: erofs::merge::MergeError,
        /// The blob that turned out to be corrupt, if that is why.
        quarantined: Option<BlobHash>,
    },
}

impl StoreError {
    /// Whether something derived is damaged, so that making it again helps.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. }
                | Self::Blob { .. }
                | Self::Missing { .. }
                | Self::Record { .. }
                | Self::Merge {
                    quarantined: Some(_),
                    ..
                }
        )
    }

    /// An I/O error, told apart by whether the disk is full.
    pub(crate) fn io(root: &Path, action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        let root = root.to_owned();
        if is_out_of_space(&source) {
            return Self::no_space(root, action);
        }
        Self::Io {
            root,
            action,
            source,
        }
    }

    pub(super) fn no_space(root: PathBuf, action: String) -> Self {
        let free_bytes = rustix::fs::statvfs(&root)
            .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize))
            .unwrap_or(0);
        Self::NoSpace {
            root,
            action,
            free_bytes,
        }
    }
}

/// Whether an error, or one that caused it, is that of a full disk or quota.
pub(crate) fn is_out_of_space(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            let errno = Errno::from_io_error(io);
            if matches!(errno, Some(Errno::NOSPC | Errno::DQUOT)) {
                return true;
            }
        }
        current = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognized_under_other_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("wrapped")]
        struct Wrapped(#[source] io::Error);
        let full = || io::Error::from(Errno::NOSPC);
        assert!(is_out_of_space(&full()));
        assert!(is_out_of_space(&Wrapped(full())));
        assert!(is_out_of_space(&io::Error::other(Wrapped(full()))));
        assert!(!is_out_of_space(&io::Error::other("else")));
    }
}
