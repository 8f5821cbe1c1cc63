//! What can be wrong with a skeleton.

use std::io;

/// Why a tar stream was not put together.
#[derive(Debug, thiserror::Error)]
pub enum SkeletonError {
    /// The reader of the skeleton failed.
    #[error("reading the skeleton of a tar stream failed at byte {offset}")]
    Read {
        /// Bytes of the skeleton read before.
        offset: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// It begins like something else.
    #[error("this is no skeleton of a tar stream: it does not begin like one")]
    Magic,
    /// It is of a later format.
    #[error("the skeleton of a tar stream has the version {found}; version {supported} is known")]
    Version {
        /// Its version.
        found: u8,
        /// The only one known.
        supported: u8,
    },
    /// It ends where more must follow.
    #[error("the skeleton of a tar stream is truncated: it ends at byte {offset}")]
    Truncated {
        /// Length of what there is.
        offset: u64,
    },
    /// A number is longer than it may be.
    #[error("the number before byte {offset} of a tar stream's skeleton is malformed")]
    Number {
        /// Where in the skeleton it breaks off.
        offset: u64,
    },
    /// A content segment has no bytes.
    #[error("the content segment before byte {offset} of a tar stream's skeleton is empty")]
    EmptyContent {
        /// Where in the skeleton it ends.
        offset: u64,
    },
    /// A content segment is at an impossible place of the blob.
    #[error(
        "the skeleton of a tar stream takes {length} bytes of content from where a blob of {blob_bytes} bytes has none: {problem}"
    )]
    Place {
        /// Bytes of content.
        length: u64,
        /// Length of the blob.
        blob_bytes: u64,
        /// What is wrong.
        problem: PlaceProblem,
    },
    /// The blob failed.
    #[error("reading {length} bytes of content at byte {offset} of the blob failed")]
    Blob {
        /// Where in the blob.
        offset: u64,
        /// How many bytes.
        length: usize,
        /// What the blob said.
        source: io::Error,
    },
    /// The segments are not the whole stream, or more than it.
    #[error("the skeleton of a tar stream of {announced} bytes makes {assembled} bytes")]
    TarLength {
        /// Length of the stream as it was recorded.
        announced: u64,
        /// Length of all segments.
        assembled: u64,
    },
    /// It was damaged.
    #[error("the skeleton of a tar stream has a wrong checksum: it was damaged")]
    Checksum,
    /// It goes on after its end.
    #[error("the skeleton of a tar stream goes on at byte {offset}, after its end")]
    TrailingBytes {
        /// Where it should end.
        offset: u64,
    },
    /// An error was met before, and nothing comes after it.
    #[error("the tar stream cannot be put together further: this failed before")]
    FailedBefore,
}

/// What is wrong with the place of content in a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceProblem {
    /// Before the end of content that came earlier, or in the first block.
    #[error("content begins before earlier content ends, or in the first block")]
    Backwards,
    /// Past the end of the blob, or of what an offset can be.
    #[error("content reaches past the end")]
    PastEnd,
}

impl From<SkeletonError> for io::Error {
    fn from(error: SkeletonError) -> Self {
        let kind = match &error {
            // Interrupted would have callers try again, and there is no again.
            SkeletonError::Read { source, .. } | SkeletonError::Blob { source, .. }
                if source.kind() != io::ErrorKind::Interrupted =>
            {
                source.kind()
            }
            SkeletonError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
