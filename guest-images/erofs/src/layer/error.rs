//! Why a layer is refused.

use std::io;

use crate::EntryName;
use crate::blob::BlobError;
use crate::path::PathProblem;
use crate::tar::TarError;
use crate::tree::TreeFull;
use crate::xattr::XattrProblem;

/// Why a tar stream did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream is no tar stream that can be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry's path cannot be used.
    #[error("the layer's entry {entry} is refused for its path")]
    Path {
        /// The path as given.
        entry: EntryName,
        /// What is wrong with it.
        source: PathProblem,
    },
    /// A hard link's target cannot be used.
    #[error("the layer's hard link {entry} is refused for its target {target}")]
    LinkPath {
        /// The link.
        entry: EntryName,
        /// Its target as given.
        target: EntryName,
        /// What is wrong with it.
        source: PathProblem,
    },
    /// A path goes through something that holds no names.
    #[error(
        "the layer's entry {entry} goes through {component}, which the layer has made something else than a directory; links are never followed"
    )]
    NotADirectory {
        /// The path as given.
        entry: EntryName,
        /// The component that is no directory.
        component: EntryName,
    },
    /// A hard link's target is not there to be linked to.
    #[error("the layer's hard link {entry} names {target}, which is no earlier file of the layer")]
    LinkTarget {
        /// The link.
        entry: EntryName,
        /// Its target as given.
        target: EntryName,
    },
    /// Something else than a directory is to be the root.
    #[error("the layer's entry {entry} would make the root directory something else")]
    Root {
        /// The path as given.
        entry: EntryName,
    },
    /// A whiteout that hides nothing, or a file below one.
    #[error(
        "the layer's entry {entry} misuses the prefix \".wh.\", which is reserved for deletions"
    )]
    Whiteout {
        /// The path as given.
        entry: EntryName,
    },
    /// A symbolic link's target is empty, has a NUL or exceeds 4095 bytes.
    #[error(
        "the layer's symbolic link {entry} has a target that is empty, contains a NUL byte or is longer than 4095 bytes"
    )]
    Symlink {
        /// The link.
        entry: EntryName,
    },
    /// A file, with its holes, exceeds 16 TiB.
    #[error("the layer's file {entry} has {size} bytes, more than the 16 TiB a file may have")]
    FileTooLarge {
        /// The file.
        entry: EntryName,
        /// Its size as announced.
        size: u64,
    },
    /// No such device number exists.
    #[error("the layer's device {entry} has the number {major}:{minor}, which Linux cannot hold")]
    Device {
        /// The device.
        entry: EntryName,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// An extended attribute cannot be kept.
    #[error("the extended attribute {name} of the layer's entry {entry} cannot be kept")]
    Xattr {
        /// The file.
        entry: EntryName,
        /// The attribute.
        name: EntryName,
        /// What is wrong with it.
        source: XattrProblem,
    },
    /// More entries than [`Limits::max_entries`](crate::Limits).
    #[error("the layer has more than the {limit} entries allowed")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// More names and attributes than [`Limits::max_metadata_bytes`](crate::Limits).
    #[error("the layer's names, links and attributes exceed the {limit} bytes allowed")]
    TooMuchMetadata {
        /// The limit.
        limit: u64,
    },
    /// A blob larger than [`Limits::max_blob_bytes`](crate::Limits).
    #[error("the layer's content exceeds the {limit} bytes allowed")]
    BlobTooLarge {
        /// The limit.
        limit: u64,
    },
    /// The output failed.
    #[error("writing the layer's blob failed")]
    Write(#[source] io::Error),
}

impl From<BlobError> for LayerError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::TooLarge(limit) => Self::BlobTooLarge { limit },
            BlobError::Write(source) => Self::Write(source),
        }
    }
}

impl From<TreeFull> for LayerError {
    fn from(full: TreeFull) -> Self {
        match full {
            TreeFull::Entries(limit) => Self::TooManyEntries { limit },
            TreeFull::Metadata(limit) => Self::TooMuchMetadata { limit },
        }
    }
}
