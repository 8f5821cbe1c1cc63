//! Disks whose extents are blobs: what a guest reads of them is verified on its way, the
//! first time.
//!
//! A blob is verified by groups of 16 KiB, by the hash tree beside it (crate `outboard`).
//! A group that has not been verified yet is read into memory of the VMM's, which the
//! guest cannot write to, verified there, and copied. From then on the disk's files are
//! read straight into guest memory. A read is planned as one or the other: all of its
//! groups are known, or all are verified again.
//!
//! Where the values of a blob's blocks of 4 KiB lie beside it, a read of no more than a
//! group reads and verifies only its blocks: on its way come 32 bytes for each of them, and
//! not up to 12 KiB that nobody has asked for. Longer reads go on where they end, mostly,
//! and whole groups are cheaper to hash.
//!
//! The memory for this is bounded: [`MAX_GROUPS`] at a time for a disk, reserved before a
//! request begins.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use outboard::{BLOCK_BYTES, BlobHash, GROUP_BYTES, Geometry, SPAN_BYTES, Span, Tree, TreeError};

use super::buffers::Buffers;
use super::step::{Action, Step};

/// Groups in memory at a time for one disk: 2 MiB.
pub const MAX_GROUPS: usize = 128;
/// Groups that one step reads, 256 KiB: more would only wait for one another.
pub const STEP_GROUPS: usize = 16;
/// Spans whose nodes are kept for a disk, 2 KiB each, 1 MiB in all: over half a GiB of its
/// blobs. A file that is read from front to back needs one. Whoever reads here and there
/// needs that of the place each time, and a span costs ten reads and seventy hashes, more
/// than the group does that it verifies.
const SPANS: usize = 512;
/// Buffers that are kept for the next request while there is none.
const SPARE: usize = STEP_GROUPS;

/// What an extent is that can be verified: all of a blob.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its hash and length.
    pub tree: Tree,
    /// Its hash tree.
    pub outboard: Arc<File>,
    /// The values of its blocks, if they are there.
    pub blocks: Option<Arc<File>>,
    /// Parts of its file may not be there yet.
    pub partial: bool,
}

/// Why a read of a blob failed that was answered with other bytes than the blob's. It
/// comes as what an [`io::Error`] carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("blob {hash} is corrupt: {what}, at byte {offset}")]
pub struct Corrupt {
    /// The blob.
    pub hash: BlobHash,
    /// Which of its spans could not be verified.
    pub span: u64,
    /// Where: in the file that is wrong.
    pub offset: u64,
    /// `its data is wrong`, and the like.
    pub what: &'static str,
    /// Whether it is the first time that this is told of this blob.
    pub first: bool,
}

/// The blobs of a disk, and what is known of them.
#[derive(Debug, Default)]
pub struct Verification {
    blobs: Vec<Known>,
    /// Spans, by blob and number.
    spans: BTreeMap<(usize, u64), Span>,
    /// The same in the order in which they came, in which they go.
    order: VecDeque<(usize, u64)>,
    spare: Vec<Group>,
}

/// Not a box: the kernel writes to it by an address that was taken before.
type Group = Vec<u8>;

#[derive(Debug)]
struct Known {
    tree: Tree,
    /// Indices into the disk's files.
    data: usize,
    outboard: usize,
    block_values: Option<usize>,
    /// A bit for each block, set once it has been verified.
    blocks: Vec<u64>,
    /// Its corruption has been told.
    told: bool,
}

/// Reading whole groups or blocks, to be verified and then copied to the guest.
#[derive(Debug)]
pub struct Check {
    blob: usize,
    unit: Unit,
    /// Where in the blob the first of them begins.
    start: u64,
    /// What is read of each group.
    bounce: Vec<Group>,
    /// The values of the blocks of all groups that anything is read of; empty where groups
    /// are verified, and before they are read.
    values: Vec<u8>,
    /// What is not read yet; empty before the step begins, too.
    missing: Buffers,
    begun: bool,
    /// How far after `start` the guest's bytes begin.
    skip: usize,
    /// Where they go.
    to: Buffers,
}

/// What is verified alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Group,
    /// By the values in this file.
    Block(usize),
}

/// What is read of one group.
struct Piece {
    group: u64,
    offset: u64,
    length: usize,
}

/// What a check needs.
#[derive(Debug)]
pub enum Need {
    /// Nothing more.
    Nothing,
    /// This step comes before it.
    Before(Step),
    /// To read what is missing: in this of the disk's files, from here on.
    Read(usize, u64),
}

/// Reading the nodes over a span.
#[derive(Debug)]
pub struct Nodes {
    blob: usize,
    span: u64,
    /// Where a node on the way to the span is, and its content; the span's own last.
    read: Vec<(u64, Vec<u8>)>,
    /// How many of them are there.
    done: usize,
    missing: Buffers,
}

impl Verification {
    /// Takes note of a blob; returns its number.
    pub fn add(
        &mut self,
        tree: Tree,
        data: usize,
        outboard: usize,
        block_values: Option<usize>,
    ) -> usize {
        let geometry = tree.geometry();
        let blocks = geometry.blob_bytes().div_ceil(BLOCK_BYTES);
        let words = blocks.div_ceil(u64::from(u64::BITS));
        self.blobs.push(Known {
            tree,
            data,
            outboard,
            block_values: block_values.filter(|_| geometry.block_values_bytes() > 0),
            // As large as a bit for each 4 KiB of a file that is there.
            blocks: vec![0; usize::try_from(words).unwrap_or(usize::MAX)],
            told: false,
        });
        self.blobs.len() - 1
    }

    /// Whether all of these bytes of a blob have been verified.
    pub fn is_known(&self, blob: usize, offset: u64, length: u64) -> bool {
        let Some(known) = self.blobs.get(blob) else {
            return false;
        };
        length == 0 || blocks(offset, length).all(|block| known.has(block))
    }

    /// Adds the steps to `steps` that fill `to` from `offset` of a blob.
    pub fn plan(&self, blob: usize, offset: u64, mut to: Buffers, steps: &mut Vec<Step>) {
        let Some(known) = self.blobs.get(blob) else {
            return;
        };
        let unit = match known.block_values {
            Some(values) if to.bytes() <= GROUP_BYTES => Unit::Block(values),
            _ => Unit::Group,
        };
        let mut offset = offset;
        while to.bytes() > 0 {
            let start = offset - offset % unit.bytes();
            let end = (offset / GROUP_BYTES + STEP_GROUPS as u64) * GROUP_BYTES;
            let part = to.split_off_front(end - offset);
            let skip = (offset - start) as usize;
            offset += part.bytes();
            steps.push(Step {
                file: known.data,
                offset: start,
                action: Action::Check(Box::new(Check {
                    blob,
                    unit,
                    start,
                    bounce: Vec::new(),
                    values: Vec::new(),
                    missing: Buffers::default(),
                    begun: false,
                    skip,
                    to: part,
                })),
            });
        }
    }

    /// Prepares a step for its first call.
    pub fn begin(&mut self, check: &mut Check) {
        if check.begun {
            return;
        }
        check.begun = true;
        let Some(known) = self.blobs.get(check.blob) else {
            return;
        };
        for piece in check.pieces(known.tree.geometry()) {
            let mut bytes = self
                .spare
                .pop()
                .unwrap_or_else(|| vec![0; GROUP_BYTES as usize]);
            check.missing.push_host(&mut bytes[..piece.length]);
            check.bounce.push(bytes);
        }
    }

    /// What to make of a file that ends before a blob does.
    pub fn truncated(&mut self, blob: usize, span: u64, offset: u64) -> io::Error {
        match self.blobs.get_mut(blob) {
            Some(known) => known.corrupt(span, offset, "it ends"),
            None => io::ErrorKind::UnexpectedEof.into(),
        }
    }

    /// Verifies what was read and copies it to the guest, unless something is needed for
    /// that which has not been read.
    pub fn finish(&mut self, check: &mut Check) -> io::Result<Need> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let known = self.blobs.get_mut(check.blob).ok_or_else(invalid)?;
        let geometry = known.tree.geometry();
        let values = geometry.block_values(check.groups());
        if let Unit::Block(file) = check.unit
            && check.values.is_empty()
        {
            check.values = vec![0; (values.end - values.start) as usize];
            check.missing.push_host(&mut check.values);
            return Ok(Need::Read(file, values.start));
        }
        for (piece, bytes) in check.pieces(geometry).zip(&check.bounce) {
            let group = piece.group;
            let span = group * GROUP_BYTES / SPAN_BYTES;
            let Some(nodes) = self.spans.get(&(check.blob, span)) else {
                return self.nodes(check.blob, span).map(Need::Before);
            };
            let bytes = &bytes[..piece.length];
            let wrong = match check.unit {
                Unit::Group if nodes.verify(group, bytes) => None,
                Unit::Group => Some((piece.offset, "its data is wrong")),
                Unit::Block(_) => {
                    let place = geometry.block_values(group..group + 1);
                    let from = (place.start - values.start) as usize;
                    let to = (place.end - values.start) as usize;
                    match nodes.blocks(group, &check.values[from..to]) {
                        Some(blocks) => numbered(piece.offset, bytes)
                            .find(|(block, bytes)| !blocks.verify(*block, bytes))
                            .map(|(block, _)| (block * BLOCK_BYTES, "its data is wrong")),
                        None => Some((piece.offset, "the hashes of its blocks are wrong")),
                    }
                }
            };
            if let Some((offset, what)) = wrong {
                return Err(known.corrupt(span, offset, what));
            }
            numbered(piece.offset, bytes).for_each(|(block, _)| known.note(block));
        }
        let mut copied = 0;
        let mut skip = check.skip;
        for (piece, bytes) in check.pieces(geometry).zip(&check.bounce) {
            let bytes = bytes.get(skip..piece.length).unwrap_or_default();
            check.to.copy_at(copied, bytes);
            copied += bytes.len();
            skip = 0;
        }
        self.release(check);
        Ok(Need::Nothing)
    }

    /// Takes a step's memory back, for the next one: while there are many at a time, new
    /// memory would cost each as much as its hash does.
    pub fn release(&mut self, check: &mut Check) {
        check.missing = Buffers::default();
        self.spare.append(&mut check.bounce);
        self.spare.truncate(MAX_GROUPS);
    }

    /// Gives memory back that was for many requests at a time: there is none now.
    pub fn rest(&mut self) {
        self.spare.truncate(SPARE);
    }

    /// The step that reads the nodes over a span.
    fn nodes(&self, blob: usize, span: u64) -> io::Result<Step> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let known = self.blobs.get(blob).ok_or_else(invalid)?;
        let place = known.tree.geometry().span(span).ok_or_else(invalid)?;
        let node = |(offset, _)| (offset, vec![0; outboard::NODE_BYTES as usize]);
        let mut read: Vec<(u64, Vec<u8>)> = place.path.into_iter().map(node).collect();
        let own = (place.groups - 1) * outboard::NODE_BYTES;
        read.push((place.offset, vec![0; own as usize]));
        let mut nodes = Nodes {
            blob,
            span,
            read,
            done: 0,
            missing: Buffers::default(),
        };
        let offset = nodes.go_on().unwrap_or(0);
        Ok(Step {
            file: known.outboard,
            offset,
            action: Action::Nodes(Box::new(nodes)),
        })
    }

    /// Verifies the nodes that were read and keeps them.
    pub fn keep(&mut self, nodes: &Nodes) -> io::Result<()> {
        let Some(known) = self.blobs.get_mut(nodes.blob) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let read = |buffer: &mut [u8], offset: u64| {
            let found = nodes.read.iter().find(|(at, _)| *at == offset);
            match found {
                Some((_, bytes)) if bytes.len() == buffer.len() => {
                    buffer.copy_from_slice(bytes);
                    Ok(())
                }
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        };
        let span = match known.tree.span(nodes.span, read) {
            Ok(span) => span,
            Err(TreeError::Corrupt { offset, .. }) => {
                return Err(known.corrupt(nodes.span, offset, "its hash tree is wrong"));
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let key = (nodes.blob, nodes.span);
        // Two reads may have missed it at once.
        if self.spans.insert(key, span).is_none() {
            self.order.push_back(key);
        }
        // What has come last stays, or whoever waits for it would ask again. There are far
        // more than requests at a time.
        while self.order.len() > SPANS {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.spans.remove(&oldest));
        }
        Ok(())
    }
}

impl Known {
    fn has(&self, block: u64) -> bool {
        let word = self.blocks.get((block / u64::from(u64::BITS)) as usize);
        word.is_some_and(|word| word >> (block % u64::from(u64::BITS)) & 1 == 1)
    }

    fn note(&mut self, block: u64) {
        let word = self.blocks.get_mut((block / u64::from(u64::BITS)) as usize);
        if let Some(word) = word {
            *word |= 1 << (block % u64::from(u64::BITS));
        }
    }

    fn corrupt(&mut self, span: u64, offset: u64, what: &'static str) -> io::Error {
        let first = !std::mem::replace(&mut self.told, true);
        let hash = self.tree.hash();
        let corrupt = Corrupt {
            hash,
            span,
            offset,
            what,
            first,
        };
        io::Error::new(io::ErrorKind::InvalidData, corrupt)
    }
}

impl Unit {
    fn bytes(self) -> u64 {
        match self {
            Self::Group => GROUP_BYTES,
            Self::Block(_) => BLOCK_BYTES,
        }
    }
}

impl Check {
    /// Where what the guest reads ends in the blob.
    fn end(&self) -> u64 {
        self.start + self.skip as u64 + self.to.bytes()
    }

    fn groups(&self) -> Range<u64> {
        self.start / GROUP_BYTES..self.end().div_ceil(GROUP_BYTES)
    }

    /// What is read, whole groups or blocks, by group.
    fn pieces(&self, geometry: Geometry) -> impl Iterator<Item = Piece> + use<> {
        let unit = self.unit.bytes();
        let end = self.end().next_multiple_of(unit).min(geometry.blob_bytes());
        let start = self.start;
        self.groups().map(move |group| {
            let offset = start.max(group * GROUP_BYTES);
            let end = end.min((group + 1) * GROUP_BYTES);
            Piece {
                group,
                offset,
                length: end.saturating_sub(offset) as usize,
            }
        })
    }

    /// How many groups are in memory while the step runs.
    pub fn count(&self) -> usize {
        let groups = self.groups();
        (groups.end - groups.start) as usize
    }

    /// The blob that is read.
    pub fn blob(&self) -> usize {
        self.blob
    }

    /// The span of it with the first of what is read.
    pub fn span(&self) -> u64 {
        self.start / SPAN_BYTES
    }

    /// What is still to be read.
    pub fn missing(&mut self) -> &mut Buffers {
        &mut self.missing
    }

    /// The same, for a call.
    pub fn wanted(&self) -> &Buffers {
        &self.missing
    }
}

impl Nodes {
    /// The blob whose nodes are read.
    pub fn blob(&self) -> usize {
        self.blob
    }

    /// The span that they are over.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// What is still to be read of the node or nodes at hand.
    pub fn missing(&mut self) -> &mut Buffers {
        &mut self.missing
    }

    /// The same, for a call.
    pub fn wanted(&self) -> &Buffers {
        &self.missing
    }

    /// Goes on to what is to be read next; returns where it is in the outboard, or `None`
    /// if all is there.
    pub fn go_on(&mut self) -> Option<u64> {
        while let Some((offset, bytes)) = self.read.get_mut(self.done) {
            self.done += 1;
            // A span of one group has no nodes of its own.
            if !bytes.is_empty() {
                self.missing = Buffers::default();
                self.missing.push_host(bytes);
                return Some(*offset);
            }
        }
        None
    }
}

/// The blocks that bytes of a blob lie in.
fn blocks(offset: u64, length: u64) -> RangeInclusive<u64> {
    offset / BLOCK_BYTES..=offset.saturating_add(length - 1) / BLOCK_BYTES
}

/// The blocks of bytes that begin at `offset` of a blob, where a block does.
fn numbered(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    (offset / BLOCK_BYTES..).zip(bytes.chunks(BLOCK_BYTES as usize))
}

#[cfg(test)]
mod tests;
