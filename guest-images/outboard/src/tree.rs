//! Verifying parts of a blob by its outboard.

use std::io;

use blake3::hazmat::ChainingValue;

use crate::{
    BLOCK_BYTES, BlobHash, GROUP_BYTES, Geometry, NODE_BYTES, SPAN_GROUPS, SPAN_NODES, VALUE_BYTES,
    block_value, group_value, left_of, node_value, root_hash, value_over,
};

/// The tree over a blob, known by its root. Nothing else is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    hash: BlobHash,
    geometry: Geometry,
}

/// Why nodes of an outboard cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// They could not be read.
    #[error("the hash tree of blob {hash} cannot be read at byte {offset}")]
    Read {
        /// The blob.
        hash: BlobHash,
        /// Where in the outboard.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// They are not those of the blob.
    #[error("the hash tree of blob {hash} is corrupt at byte {offset}")]
    Corrupt {
        /// The blob.
        hash: BlobHash,
        /// Where in the outboard.
        offset: u64,
    },
    /// There is no such span.
    #[error("blob {hash} of {blob_bytes} bytes has no span {span}")]
    NoSpan {
        /// The blob.
        hash: BlobHash,
        /// Its length.
        blob_bytes: u64,
        /// The span asked for.
        span: u64,
    },
}

/// What the groups of a span are, verified.
#[derive(Debug, Clone)]
pub struct Span {
    first_group: u64,
    groups: Groups,
}

/// What the blocks of a group are, verified.
#[derive(Debug, Clone)]
pub struct Blocks {
    first_block: u64,
    values: Vec<ChainingValue>,
}

#[derive(Debug, Clone)]
enum Groups {
    /// The only group of its blob.
    Only(BlobHash),
    Several(Vec<ChainingValue>),
}

impl Tree {
    /// That of the blob of `blob_bytes` bytes that has this hash.
    pub fn new(hash: BlobHash, blob_bytes: u64) -> Self {
        Self {
            hash,
            geometry: Geometry::of(blob_bytes),
        }
    }

    /// The hash of the blob.
    pub fn hash(&self) -> BlobHash {
        self.hash
    }

    /// The shape of the tree.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Verifies the nodes of a span. `read` fills a buffer from an offset of the
    /// outboard; it is called once for each node on the way from the root, and once for
    /// those of the span, which are 4032 bytes at most.
    pub fn span(
        &self,
        index: u64,
        mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> Result<Span, TreeError> {
        let hash = self.hash;
        let place = self.geometry.span(index).ok_or(TreeError::NoSpan {
            hash,
            blob_bytes: self.geometry.blob_bytes(),
            span: index,
        })?;
        let mut read = |buffer: &mut [u8], offset| {
            read(buffer, offset).map_err(|source| TreeError::Read {
                hash,
                offset,
                source,
            })
        };
        let mut expected = Expected::Root(hash);
        for (offset, right) in place.path {
            let mut node = [0; NODE_BYTES as usize];
            read(&mut node, offset)?;
            if !expected.is(&node) {
                return Err(TreeError::Corrupt { hash, offset });
            }
            let (left_value, right_value) = crate::children(&node);
            expected = Expected::Value(if right { right_value } else { left_value });
        }
        let groups = match (place.groups, expected) {
            (1, Expected::Root(hash)) => Groups::Only(hash),
            (1, Expected::Value(value)) => Groups::Several(vec![value]),
            (count, expected) => {
                let mut nodes = [0; (SPAN_NODES * NODE_BYTES) as usize];
                let nodes = &mut nodes[..((count - 1) * NODE_BYTES) as usize];
                read(nodes, place.offset)?;
                let mut values = Vec::with_capacity(SPAN_GROUPS as usize);
                let (nodes, _) = nodes.as_chunks();
                unfold(nodes, count, expected, &mut values).map_err(|node| TreeError::Corrupt {
                    hash,
                    offset: place.offset + node as u64 * NODE_BYTES,
                })?;
                Groups::Several(values)
            }
        };
        Ok(Span {
            first_group: index * SPAN_GROUPS,
            groups,
        })
    }
}

/// What a node must amount to.
enum Expected {
    Root(BlobHash),
    Value(ChainingValue),
}

impl Expected {
    fn is(&self, node: &[u8; NODE_BYTES as usize]) -> bool {
        match self {
            Self::Root(hash) => root_hash(node) == *hash,
            Self::Value(value) => node_value(node) == *value,
        }
    }
}

/// The values of `count` groups, whose nodes are `nodes`, in pre-order. The error is
/// which node is wrong. It goes as deep as six, for 64 groups.
fn unfold(
    nodes: &[[u8; NODE_BYTES as usize]],
    count: u64,
    expected: Expected,
    values: &mut Vec<ChainingValue>,
) -> Result<(), usize> {
    let (node, below) = match (nodes.split_first(), expected) {
        (None, Expected::Value(value)) => {
            values.push(value);
            return Ok(());
        }
        (Some((node, below)), expected) if expected.is(node) => (node, below),
        _ => return Err(0),
    };
    let left = left_of(count);
    let (left_value, right_value) = crate::children(node);
    let (left_nodes, right_nodes) = below.split_at(left as usize - 1);
    unfold(left_nodes, left, Expected::Value(left_value), values).map_err(|node| node + 1)?;
    unfold(
        right_nodes,
        count - left,
        Expected::Value(right_value),
        values,
    )
    .map_err(|node| node + left as usize)
}

impl Span {
    /// The first group of the span.
    pub fn first_group(&self) -> u64 {
        self.first_group
    }

    /// Whether `bytes` are what the blob has as this group, all of it.
    pub fn verify(&self, group: u64, bytes: &[u8]) -> bool {
        if bytes.len() as u64 > GROUP_BYTES {
            return false;
        }
        // Only an empty blob has an empty group.
        match &self.groups {
            Groups::Only(hash) => group == 0 && BlobHash::of(bytes) == *hash,
            Groups::Several(_) if bytes.is_empty() => false,
            Groups::Several(_) => self
                .value(group)
                .is_some_and(|value| group_value(group, bytes) == value),
        }
    }

    /// What the blocks of a group are, by what is said to be their values; `None` if it is
    /// not, and for the only group of a blob, which has no block values.
    pub fn blocks(&self, group: u64, values: &[u8]) -> Option<Blocks> {
        let expected = self.value(group)?;
        let (values, []) = values.as_chunks::<{ VALUE_BYTES as usize }>() else {
            return None;
        };
        let fits = (1..=GROUP_BYTES / BLOCK_BYTES).contains(&(values.len() as u64));
        if !fits || value_over(values) != expected {
            return None;
        }
        Some(Blocks {
            first_block: group * (GROUP_BYTES / BLOCK_BYTES),
            values: values.to_vec(),
        })
    }

    fn value(&self, group: u64) -> Option<ChainingValue> {
        let Groups::Several(values) = &self.groups else {
            return None;
        };
        let index = group.checked_sub(self.first_group)?;
        values.get(usize::try_from(index).ok()?).copied()
    }
}

impl Blocks {
    /// Whether `bytes` are what the blob has as this block, all of it. Blocks count from the
    /// start of the blob.
    pub fn verify(&self, block: u64, bytes: &[u8]) -> bool {
        let length = 1..=BLOCK_BYTES;
        let index = block.checked_sub(self.first_block);
        let value = index.and_then(|index| self.values.get(usize::try_from(index).ok()?));
        length.contains(&(bytes.len() as u64))
            && value.is_some_and(|value| block_value(block, bytes) == *value)
    }
}
