//! Writing an outboard.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use blake3::hazmat::ChainingValue;

use crate::{
    BLOCK_BYTES, BlobHash, GROUP_BYTES, GROUP_VALUE_BYTES, Geometry, NODE_BYTES, SPAN_BYTES,
    SPAN_GROUPS, SPAN_NODES, block_value, group_value, left_of, node_value, root_hash, value_over,
};

const WHOLE_SPAN_NODE_BYTES: u64 = SPAN_NODES * NODE_BYTES;

/// Takes a blob span by span and writes its outboard to a file.
///
/// It keeps 32 bytes for each span, a MiB of the blob. Where the nodes of a span belong
/// depends on how many spans there are; until that is known they lie one after another
/// in the file, never behind their place.
#[derive(Debug)]
pub struct Builder {
    outboard: File,
    /// Where the block values go, if they are wanted.
    blocks: Option<File>,
    /// The values of the spans so far, as if there were more than one.
    spans: Vec<ChainingValue>,
    blob_bytes: u64,
    /// The hash of the blob if it is but one group.
    only: BlobHash,
}

/// What a [`Builder`] has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// The hash of the blob.
    pub hash: BlobHash,
    /// How long the blob is.
    pub blob_bytes: u64,
}

impl Builder {
    /// Will write to `outboard`, an empty file open for reading and writing.
    pub fn new(outboard: File) -> Self {
        Self {
            outboard,
            blocks: None,
            spans: Vec::new(),
            blob_bytes: 0,
            only: BlobHash::of(b""),
        }
    }

    /// Will write the block values, too: to `blocks`, an empty file open for writing.
    pub fn with_blocks(mut self, blocks: File) -> Self {
        self.blocks = Some(blocks);
        self
    }

    /// Adds the next span: [`SPAN_BYTES`], or less if it is the last one. After that one,
    /// and for more, it is an error of the kind [`io::ErrorKind::InvalidInput`].
    pub fn push(&mut self, span: &[u8]) -> io::Result<()> {
        let fits = self.blob_bytes.is_multiple_of(SPAN_BYTES) && span.len() as u64 <= SPAN_BYTES;
        if !fits {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if span.is_empty() {
            return Ok(());
        }
        let value = self.write(self.spans.len() as u64, span)?;
        self.spans.push(value);
        self.blob_bytes += span.len() as u64;
        Ok(())
    }

    /// Adds all that `content` has, span by span, and finishes.
    pub fn build(mut self, mut content: impl Read) -> io::Result<Built> {
        let mut span = Vec::new();
        loop {
            span.clear();
            content.by_ref().take(SPAN_BYTES).read_to_end(&mut span)?;
            if span.is_empty() {
                return self.finish();
            }
            self.push(&span)?;
        }
    }

    /// Puts a span in the place of the one that was added before as `index`; it has as many
    /// bytes.
    pub fn replace(&mut self, index: u64, span: &[u8]) -> io::Result<()> {
        let length = Geometry::of(self.blob_bytes).span_bytes(index);
        if length != span.len() as u64 || span.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let value = self.write(index, span)?;
        self.spans[index as usize] = value;
        Ok(())
    }

    /// Writes the nodes over the spans, and every node to its place. The file is not
    /// synced.
    pub fn finish(self) -> io::Result<Built> {
        let geometry = Geometry::of(self.blob_bytes);
        if self.spans.len() > 1 {
            // From the last on: a place is never before where the nodes are now.
            let mut nodes = [0; WHOLE_SPAN_NODE_BYTES as usize];
            for index in (0..geometry.spans()).rev() {
                let Some(place) = geometry.span(index) else {
                    continue;
                };
                let nodes = &mut nodes[..((place.groups - 1) * NODE_BYTES) as usize];
                self.outboard
                    .read_exact_at(nodes, index * WHOLE_SPAN_NODE_BYTES)?;
                self.outboard.write_all_at(nodes, place.offset)?;
            }
            self.write_top(&self.spans, 0, geometry.groups())?;
        }
        let hash = match geometry.groups() {
            1 => self.only,
            _ => {
                let mut root = [0; NODE_BYTES as usize];
                self.outboard.read_exact_at(&mut root, 0)?;
                root_hash(&root)
            }
        };
        Ok(Built {
            hash,
            blob_bytes: self.blob_bytes,
        })
    }

    /// Writes the nodes within a span to where they lie for now, and the values of its
    /// blocks; returns its value.
    fn write(&mut self, index: u64, span: &[u8]) -> io::Result<ChainingValue> {
        let is_only = index == 0 && span.len() as u64 <= GROUP_BYTES;
        if is_only {
            self.only = BlobHash::of(span);
        }
        let values = match self.blocks.as_ref().filter(|_| !is_only) {
            Some(blocks) => self.write_blocks(blocks, index, span)?,
            None => {
                let groups = span.chunks(GROUP_BYTES as usize);
                let numbered = groups.zip(index * SPAN_GROUPS..);
                numbered
                    .map(|(bytes, group)| group_value(group, bytes))
                    .collect()
            }
        };
        let mut nodes = Vec::with_capacity(WHOLE_SPAN_NODE_BYTES as usize);
        let value = fold(&values, &mut nodes);
        self.outboard
            .write_all_at(&nodes, index * WHOLE_SPAN_NODE_BYTES)?;
        Ok(value)
    }

    /// Writes the values of a span's blocks; returns those of its groups.
    fn write_blocks(&self, file: &File, index: u64, span: &[u8]) -> io::Result<Vec<ChainingValue>> {
        let blocks = span.chunks(BLOCK_BYTES as usize);
        let values: Vec<_> = blocks
            .zip(index * (SPAN_BYTES / BLOCK_BYTES)..)
            .map(|(bytes, block)| block_value(block, bytes))
            .collect();
        let place = index * SPAN_GROUPS * GROUP_VALUE_BYTES;
        file.write_all_at(values.as_flattened(), place)?;
        let groups = values.chunks((GROUP_BYTES / BLOCK_BYTES) as usize);
        Ok(groups.map(value_over).collect())
    }

    /// Writes the nodes over these spans, which are `groups` groups; the first of them
    /// is the outboard's node number `node`. Returns their value. It goes as deep as the
    /// tree is high.
    fn write_top(
        &self,
        spans: &[ChainingValue],
        node: u64,
        groups: u64,
    ) -> io::Result<ChainingValue> {
        if let [value] = spans {
            return Ok(*value);
        }
        let left = left_of(groups);
        let (left_spans, right_spans) = spans.split_at((left / SPAN_GROUPS) as usize);
        let left_value = self.write_top(left_spans, node + 1, left)?;
        let right_value = self.write_top(right_spans, node + left, groups - left)?;
        let pair = pair(left_value, right_value);
        self.outboard.write_all_at(&pair, node * NODE_BYTES)?;
        Ok(node_value(&pair))
    }
}

/// Adds the nodes over groups to `nodes`, in pre-order; returns their value.
fn fold(values: &[ChainingValue], nodes: &mut Vec<u8>) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let place = nodes.len();
    nodes.resize(place + NODE_BYTES as usize, 0);
    let (left, right) = values.split_at(left_of(values.len() as u64) as usize);
    let pair = pair(fold(left, nodes), fold(right, nodes));
    nodes[place..place + NODE_BYTES as usize].copy_from_slice(&pair);
    node_value(&pair)
}

fn pair(left: ChainingValue, right: ChainingValue) -> [u8; NODE_BYTES as usize] {
    let mut pair = [0; NODE_BYTES as usize];
    pair[..32].copy_from_slice(&left);
    pair[32..].copy_from_slice(&right);
    pair
}
