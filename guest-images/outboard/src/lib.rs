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

mod builder;
mod geometry;
mod hash;
mod tree;

pub use builder::{Builder, Built};
pub use geometry::{Geometry, SpanPlace};
pub use hash::{BlobHash, HashError};
pub use tree::{Span, Tree, TreeError};

/// The least that can be verified alone, in bytes: 16 chunks of BLAKE3's.
pub const GROUP_BYTES: u64 = 16 << 10;
/// The nodes over so many bytes of a blob lie together in its outboard.
pub const SPAN_BYTES: u64 = SPAN_GROUPS * GROUP_BYTES;
/// The length of a node: the chaining values of its two children.
pub const NODE_BYTES: u64 = 64;

const SPAN_GROUPS: u64 = 64;
/// The nodes over a whole span.
const SPAN_NODES: u64 = SPAN_GROUPS - 1;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root};

/// The chaining value of a group that is not all of its blob.
fn group_value(group: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(group * GROUP_BYTES);
    hasher.update(bytes);
    hasher.finalize_non_root()
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
