//! What can be wrong with a tar stream.

use std::io;

use crate::EntryName;

/// Why a tar stream could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The underlying reader failed.
    #[error("reading the tar stream failed at byte {offset}")]
    Read {
        /// Bytes read before.
        offset: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// The [`Recorder`](super::Recorder) failed.
    #[error("recording what the tar stream consists of failed near byte {offset}")]
    Record {
        /// Bytes read before, with or without those that were to be recorded.
        offset: u64,
        /// What the recorder said.
        source: io::Error,
    },
    /// The stream goes on past [`Limits::max_tar_bytes`](crate::Limits).
    #[error("the tar stream is longer than the limit of {limit} bytes")]
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// The stream ends where more must follow.
    #[error("the tar stream is truncated: it ends at byte {offset}, inside {inside}")]
    Truncated {
        /// Length of what there is.
        offset: u64,
        /// What is incomplete.
        inside: Inside,
    },
    /// A header's checksum does not match.
    #[error(
        "the tar header at byte {offset} has a wrong checksum: this is no tar stream, or a damaged one"
    )]
    Checksum {
        /// Where the header begins.
        offset: u64,
    },
    /// One block of zeros, then something else.
    #[error(
        "the tar stream has a single zero block before byte {offset}, where the end of the archive takes two"
    )]
    LoneZeroBlock {
        /// Where the block after it begins.
        offset: u64,
    },
    /// A numeric field holds no number, or one out of its range.
    #[error("the {field} in the tar header at byte {offset} is not a number in range")]
    Number {
        /// Where the header begins.
        offset: u64,
        /// Which field.
        field: &'static str,
    },
    /// The extended headers before an entry are larger than any honest ones.
    #[error(
        "the extended header at byte {offset} of the tar stream brings the description of one entry to {announced} bytes; {limit} are accepted"
    )]
    ExtendedHeaderTooLong {
        /// Where the header begins.
        offset: u64,
        /// Its size as announced, and that of those before it.
        announced: u64,
        /// The most accepted.
        limit: u64,
    },
    /// The records of a PAX header are malformed.
    #[error("the PAX header at byte {offset} of the tar stream is malformed: {problem}")]
    Pax {
        /// Where the header begins.
        offset: u64,
        /// What is wrong.
        problem: PaxProblem,
    },
    /// The map of a sparse file is malformed.
    #[error("the sparse file {entry} in the tar stream has an unusable map: {problem}")]
    Sparse {
        /// The file.
        entry: EntryName,
        /// What is wrong.
        problem: SparseProblem,
    },
    /// A kind of entry that no container layer has.
    #[error("the tar entry {entry} is of type {flag:?}, which a layer cannot contain")]
    Unsupported {
        /// The entry.
        entry: EntryName,
        /// Its type flag.
        flag: char,
    },
    /// An extended header, and then no entry that it describes.
    #[error("the tar stream ends at byte {offset} with an extended header that describes no entry")]
    DanglingExtendedHeader {
        /// Where the entry was expected.
        offset: u64,
    },
}

/// What a truncated stream breaks off in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// A 512-byte header.
    Header,
    /// The records of an extended header or a long name.
    ExtendedHeader,
    /// The map of a sparse file.
    SparseMap,
    /// The content of this entry.
    Content(EntryName),
}

impl std::fmt::Display for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("a header"),
            Self::ExtendedHeader => f.write_str("an extended header"),
            Self::SparseMap => f.write_str("the map of a sparse file"),
            Self::Content(entry) => write!(f, "the content of {entry}"),
        }
    }
}

/// What is wrong with a PAX header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PaxProblem {
    /// Not of the form `LENGTH KEY=VALUE\n`.
    #[error("a record is not of the form \"LENGTH KEY=VALUE\"")]
    Record,
    /// A value does not fit its key.
    #[error("the value of \"{0}\" is malformed or out of range")]
    Value(&'static str),
    /// A global header describes a single file.
    #[error("a global header gives every file the same \"{0}\"")]
    Global(&'static str),
}

/// What is wrong with the map of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SparseProblem {
    /// A number in the map is malformed or missing.
    #[error("it is malformed")]
    Malformed,
    /// Segments overlap, go backwards, or exceed the size of the file.
    #[error("its segments overlap, are out of order or exceed the file")]
    Order,
    /// The stored data is more or less than the segments take.
    #[error("its segments do not add up to the data stored")]
    Sum,
    /// More segments than are accepted.
    #[error("it has more than {0} segments")]
    TooMany(usize),
}
