//! Container layers and images as EROFS.
//!
//! [`layer::write`] turns a layer's tar stream into one uncompressed EROFS blob
//! in one pass. [`merge::write`] puts a metadata-only EROFS in front of several
//! such blobs, so that the concatenation is the image: a disk that a kernel
//! mounts with `-t erofs`, nothing copied. [`image::Image`] reads both.
//! A [`skeleton`] is what of the tar stream a blob does not hold: with both, the
//! stream can be had again byte by byte.
//!
//! Everything is deterministic: the same tar bytes give the same blob bytes.
//! The on-disk format is the one of Linux 6.1 (`fs/erofs/erofs_fs.h`,
//! `Documentation/filesystems/erofs.rst`); no feature later than that is used,
//! and of the incompatible ones only chunk-based files, for sparse files.
//!
//! ```text
//! layer blob     [superblock | file data, block aligned ... | inodes | directory data]
//! merged disk    [superblock | inodes | directory data][layer 1 blob][layer 2 blob] ...
//! ```

mod attributes;
mod blob;
mod extents;
mod format;
pub mod image;
pub mod layer;
mod limits;
pub mod merge;
mod metadata;
mod name;
mod path;
pub mod skeleton;
mod sparse;
pub mod tar;
mod tree;
mod xattr;

pub use attributes::{Attributes, DeviceNumber, FileType, Timestamp};
pub use format::BLOCK_BYTES;
pub use image::Image;
pub use limits::Limits;
pub use name::EntryName;
pub use path::PathProblem;
pub use xattr::{Xattr, XattrProblem};
