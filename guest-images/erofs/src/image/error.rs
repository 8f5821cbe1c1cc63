//! Why an image could not be read.

use std::io;

use crate::format::SuperblockProblem;

/// Why an image, or something in it, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bytes under the image could not be had.
    #[error("reading {length} bytes at byte {offset} of an EROFS image failed")]
    Read {
        /// Where.
        offset: u64,
        /// How many.
        length: usize,
        /// What the reader said.
        source: io::Error,
    },
    /// It is no EROFS image, or none of this crate's.
    #[error("this is no EROFS image of ours")]
    Superblock(#[source] SuperblockProblem),
    /// The file is cut, or longer than it should be.
    #[error("an EROFS image of {expected} bytes has {actual}")]
    Size {
        /// What the superblock says.
        expected: u64,
        /// What there is.
        actual: u64,
    },
    /// Something in the image contradicts itself.
    #[error("the EROFS image is corrupted at inode {nid}: {what}")]
    Corrupt {
        /// The inode's slot number.
        nid: u64,
        /// What is wrong.
        what: Corruption,
    },
}

/// What is wrong with an inode, or with what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// It, or something it names, lies beyond the end of the image.
    #[error("it reaches beyond the image")]
    OutOfBounds,
    /// Its format, type or layout is none that this crate writes.
    #[error("its format is not one we write")]
    Format,
    /// Its time, size or device number cannot be.
    #[error("an attribute is out of range")]
    Attribute,
    /// Its extended attributes are malformed.
    #[error("its extended attributes are malformed")]
    Xattrs,
    /// Its directory blocks are malformed.
    #[error("its directory is malformed")]
    Directory,
    /// A directory entry and the inode differ on its type.
    #[error("its type is not what its directory says")]
    Type,
    /// A directory is found twice, perhaps within itself.
    #[error("it is a directory with two names")]
    DirectoryTwice,
}
