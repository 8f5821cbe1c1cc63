//! What of a tar stream is not in its blob, so that the stream can be had again.
//!
//! The digest of a layer covers its tar stream, of which a blob has the file
//! content alone, and each tar program writes the rest in its own way. A
//! skeleton is that rest: a [`Writer`] records it while
//! [`layer::write_recorded`](crate::layer::write_recorded) converts the layer,
//! and an [`Assembler`] puts it and the blob together to the same bytes again.
//! The project tar-split has the same idea; it keeps a file for each entry's
//! content, where this has one blob.
//!
//! # Format
//!
//! ```text
//! skeleton  = magic segment* end
//! magic     = "tarskel" 0x01                       the last byte is the version
//! segment   = literal | content
//! literal   = number(2 * length) byte{length}      length >= 1
//! content   = number(2 * length + 1) number(place) length >= 1
//! end       = number(0) number(tar length) checksum
//! checksum  = CRC-32C of all bytes before it, little-endian
//! ```
//!
//! A number is a LEB128 varint: seven bits a byte, the lowest first, the highest
//! bit of each byte but the last one set; at most 64 bits, and no longer than
//! it needs to be.
//!
//! The segments, one after the other, are the tar stream. A literal holds its
//! bytes; a content segment says that so many bytes of the blob are next. Their
//! places ascend: none begins before the one before it ends, the first not in
//! the blob's first block, which is no content. A place counts from the block
//! boundary *b* at or after that end, as a signed number: 2 (offset − *b*) from
//! there on, 2 (*b* − offset) − 1 before it. Each file begins at a boundary, so
//! nearly all are 0.
//!
//! A skeleton is not compressed, but made to be: of the tar of a Debian system
//! it has headers, padding and some six bytes more for each file. Nothing
//! follows the checksum.
//!
//! # What can be relied on
//!
//! The length tells a skeleton that was cut from one that is whole, and the
//! checksum one that was damaged. Neither says anything about the blob, nor about
//! who wrote the skeleton: only the digest of what is assembled does.
//!
//! As places ascend, no byte of a blob is used twice, and what comes out of an
//! `Assembler` is no longer than skeleton and blob together. Whoever decompresses
//! a skeleton that is not trusted should bound its length.

mod assembler;
mod encoding;
mod error;
mod input;
mod writer;

pub use assembler::Assembler;
pub use error::{PlaceProblem, SkeletonError};
pub use writer::Writer;

const MAGIC: [u8; 8] = *b"tarskel\x01";
