//! A BLAKE3 hash tree beside a blob, so that any range of the blob can be verified
//! alone: when it is read from a disk, and when it arrives from somewhere.
//!
//! The hash of a blob is its BLAKE3 hash, which is the root of a tree over chunks of
//! 1 KiB. An *outboard* file keeps the nodes of this tree, but for those within groups
//! of 16 chunks ([`GROUP_BYTES`]): these are cheaper to compute again than to keep. Each
//! node is the pair of the chaining values of its two children, 64 bytes; nodes are in
//! pre-order: a node, all that is below its left child, all that is below its right
//! one. A blob of `n` groups has `n - 1` nodes, so that an outboard is 1/256 of its
//! blob. It is what `bao-tree` calls a pre-order outboard with a block size of
//! 2⁴ chunks, which iroh keeps too, with nothing before and nothing after it.
//!
//! Source: the BLAKE3 specification, section 2.1, "Tree structure"; bao-tree, which the
//! tests compare with.
//!
//! The nodes over a *span* of 64 groups ([`SPAN_BYTES`]) lie together. A [`Tree`]
//! verifies a span's nodes against the hash of the blob by what lies on the way from the
//! root, and the [`Span`] then verifies groups, each alone. A [`Builder`] writes an
//! outboard while a blob is written.
//!
//! Whoever reads 4 KiB here and there would read and hash four times as much by groups. For
//! them a file of *block values* may lie beside an outboard: the chaining values of all
//! blocks of 4 KiB ([`BLOCK_BYTES`]) one after another, 1/128 of the blob; none for a blob
//! of one group. They are what the nodes within groups are made of, so that those of a
//! group are verified by the group's own value ([`Span::blocks`]), and nobody need have
//! them.

mod builder;
mod geometry;
mod hash;
mod tree;

pub use builder::{Builder, Built};
pub use geometry::{Geometry, SpanPlace};
pub use hash::{BlobHash, HashError};
pub use tree::{Blocks, Span, Tree, TreeError};

/// The least that can be verified alone, in bytes: 16 chunks of BLAKE3's.
pub const GROUP_BYTES: u64 = 16 << 10;
/// The least that can be verified alone where there are block values, in bytes: 4 chunks.
pub const BLOCK_BYTES: u64 = 4 << 10;
/// The nodes over so many bytes of a blob lie together in its outboard.
pub const SPAN_BYTES: u64 = SPAN_GROUPS * GROUP_BYTES;
/// The length of a node: the chaining values of its two children.
pub const NODE_BYTES: u64 = 64;

const SPAN_GROUPS: u64 = 64;
/// The nodes over a whole span.
const SPAN_NODES: u64 = SPAN_GROUPS - 1;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root};

/// The length of a chaining value.
const VALUE_BYTES: u64 = 32;
/// The length of the values of a group's blocks, of the last group's at most.
const GROUP_VALUE_BYTES: u64 = GROUP_BYTES / BLOCK_BYTES * VALUE_BYTES;

/// The chaining value of a group that is not all of its blob.
fn group_value(group: u64, bytes: &[u8]) -> ChainingValue {
    value(group * GROUP_BYTES, bytes)
}

/// The chaining value of a block that is not all of its blob.
fn block_value(block: u64, bytes: &[u8]) -> ChainingValue {
    value(block * BLOCK_BYTES, bytes)
}

/// The chaining value of a subtree over `bytes`, at `offset` of its blob: a multiple of its
/// length, which is a power of two of chunks, or less at the end of the blob.
fn value(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// The value of the subtree over what has these values: at least one. It goes as deep as the
/// subtree is high.
fn value_over(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_of(values.len() as u64) as usize);
    merge_subtrees_non_root(&value_over(left), &value_over(right), Mode::Hash)
}

/// The chaining value of a node that is not the root.
fn node_value(node: &[u8; NODE_BYTES as usize]) -> ChainingValue {
    let (left, right) = children(node);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// The hash of a blob whose root has these children.
fn root_hash(node: &[u8; NODE_BYTES as usize]) -> BlobHash {
    let (left, right) = children(node);
    blake3::hazmat::merge_subtrees_root(&left, &right, Mode::Hash).into()
}

fn children(node: &[u8; NODE_BYTES as usize]) -> (ChainingValue, ChainingValue) {
    let (mut left, mut right) = ([0; 32], [0; 32]);
    left.copy_from_slice(&node[..32]);
    right.copy_from_slice(&node[32..]);
    (left, right)
}

/// The larger half of what a node is over: the greatest power of two below `count`, which
/// is at least 2.
fn left_of(count: u64) -> u64 {
    count.next_power_of_two() / 2
}
