//! Ranges of a blob on their way: pieces that are verified each alone.
//!
//! A piece is what a range has of one span: first the nodes of the hash tree that lead from
//! the root to the span, from the top; then those over the span, as they lie in the
//! outboard; then the groups that are wanted, one after the other. All lengths follow from
//! the length of the blob and the range, so that there is nothing else to be believed.
//! The nodes of a piece are at most 5 KiB for up to 1 MiB of the blob.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use outboard::{GROUP_BYTES, Geometry, NODE_BYTES, SPAN_BYTES, Tree};

use crate::store::{Blob, BlobError};

const SPAN_GROUPS: u64 = SPAN_BYTES / GROUP_BYTES;

/// Which bytes a piece consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    span: u64,
    /// Its groups: at least one, all of one span.
    pub groups: Range<u64>,
    /// Bytes of nodes, which come first.
    node_bytes: usize,
    /// Bytes of the blob.
    data_bytes: usize,
}

/// A piece that is what it should be.
#[derive(Debug)]
pub(super) struct Verified {
    /// Where in the outboard nodes are, and where they are in the bytes of the piece.
    pub nodes: Vec<(u64, Range<usize>)>,
    /// Where in the blob its bytes begin.
    pub offset: u64,
    /// Where they are in the bytes of the piece.
    pub data: Range<usize>,
}

impl Piece {
    /// The first piece of a range of groups; `None` if the blob has none of them.
    pub fn first_of(geometry: Geometry, groups: &Range<u64>) -> Option<Self> {
        let span = groups.start / SPAN_GROUPS;
        let end = groups
            .end
            .min(geometry.groups())
            .min((span + 1).saturating_mul(SPAN_GROUPS));
        if groups.start >= end {
            return None;
        }
        let place = geometry.span(span)?;
        let nodes = place.path.len() as u64 + (place.groups - 1);
        let groups = groups.start..end;
        let data_bytes = groups
            .clone()
            .map(|group| geometry.group_bytes(group))
            .sum::<u64>();
        Some(Self {
            span,
            groups,
            node_bytes: (nodes * NODE_BYTES) as usize,
            data_bytes: data_bytes as usize,
        })
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.node_bytes + self.data_bytes
    }

    /// Reads it from a blob, and verifies it on the way.
    pub fn read(&self, blob: &Blob) -> Result<Vec<u8>, BlobError> {
        let hash = blob.identity.hash;
        let mut bytes = Vec::with_capacity(self.bytes());
        let tree = Tree::new(hash, blob.identity.bytes);
        let span = tree.span(self.span, |buffer, offset| {
            blob.outboard.read_exact_at(buffer, offset)?;
            bytes.extend_from_slice(buffer);
            Ok(())
        })?;
        let nodes = bytes.len();
        bytes.resize(nodes + self.data_bytes, 0);
        let data = &mut bytes[nodes..];
        let offset = self.groups.start * GROUP_BYTES;
        blob.data
            .read_exact_at(data, offset)
            .map_err(|source| BlobError::Read {
                hash,
                offset,
                source,
            })?;
        match self.wrong_group(&span, data) {
            None => Ok(bytes),
            Some(group) => Err(BlobError::Corrupt {
                hash,
                offset: group * GROUP_BYTES,
                length: tree.geometry().group_bytes(group),
            }),
        }
    }

    /// Whether `bytes` are this piece of the blob; if so, what is where.
    pub fn verify(&self, tree: &Tree, bytes: &[u8]) -> Option<Verified> {
        let (nodes, data) = bytes.split_at_checked(self.node_bytes)?;
        let mut places = Vec::new();
        let mut taken = 0;
        let span = tree.span(self.span, |buffer, offset| {
            let range = taken..taken + buffer.len();
            let node = nodes.get(range.clone());
            buffer.copy_from_slice(node.ok_or(io::ErrorKind::UnexpectedEof)?);
            taken = range.end;
            places.push((offset, range));
            Ok(())
        });
        let span = span.ok()?;
        let whole = taken == nodes.len() && data.len() == self.data_bytes;
        if !whole || self.wrong_group(&span, data).is_some() {
            return None;
        }
        Some(Verified {
            nodes: places,
            offset: self.groups.start * GROUP_BYTES,
            data: self.node_bytes..bytes.len(),
        })
    }

    fn wrong_group(&self, span: &outboard::Span, data: &[u8]) -> Option<u64> {
        // An empty blob has one group, of no bytes.
        let mut chunks = data.chunks(GROUP_BYTES as usize);
        self.groups
            .clone()
            .find(|group| !span.verify(*group, chunks.next().unwrap_or_default()))
    }
}

#[cfg(test)]
#[path = "encoding_tests.rs"]
mod tests;
