//! Where in an outboard the nodes of a blob are.

use std::ops::Range;

use crate::{
    BLOCK_BYTES, GROUP_BYTES, GROUP_VALUE_BYTES, NODE_BYTES, SPAN_BYTES, SPAN_GROUPS, VALUE_BYTES,
    left_of,
};

/// The shape of the tree over a blob, which its length says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    blob_bytes: u64,
}

/// Where the nodes that verify a span are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanPlace {
    /// The nodes on the way from the root to the span, from the top, as offsets into the
    /// outboard; and whether the way goes on to the right there.
    pub path: Vec<(u64, bool)>,
    /// Where the nodes over the span begin, in bytes.
    pub offset: u64,
    /// The groups of the span: 64 but for the last span, whose number may be smaller.
    /// They have one node fewer.
    pub groups: u64,
}

impl Geometry {
    /// That of a blob of so many bytes.
    pub fn of(blob_bytes: u64) -> Self {
        Self { blob_bytes }
    }

    /// How long the blob is.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// How many groups it has. An empty blob has one, which is empty.
    pub fn groups(&self) -> u64 {
        self.blob_bytes.div_ceil(GROUP_BYTES).max(1)
    }

    /// How many spans it has.
    pub fn spans(&self) -> u64 {
        self.groups().div_ceil(SPAN_GROUPS)
    }

    /// How long its outboard is.
    pub fn outboard_bytes(&self) -> u64 {
        (self.groups() - 1) * NODE_BYTES
    }

    /// How long the file of its block values is.
    pub fn block_values_bytes(&self) -> u64 {
        match self.groups() {
            1 => 0,
            _ => self.blob_bytes.div_ceil(BLOCK_BYTES) * VALUE_BYTES,
        }
    }

    /// Where in that file the values of these groups' blocks are; nothing of what is not
    /// there.
    pub fn block_values(&self, groups: Range<u64>) -> Range<u64> {
        let place = |group: u64| {
            let place = group.saturating_mul(GROUP_VALUE_BYTES);
            place.min(self.block_values_bytes())
        };
        place(groups.start)..place(groups.end)
    }

    /// The length of a group, which is [`GROUP_BYTES`] but for the last one; 0 for one
    /// that is not there.
    pub fn group_bytes(&self, group: u64) -> u64 {
        let start = group.saturating_mul(GROUP_BYTES);
        self.blob_bytes.saturating_sub(start).min(GROUP_BYTES)
    }

    /// The length of a span in the blob; 0 for one that is not there.
    pub fn span_bytes(&self, span: u64) -> u64 {
        let start = span.saturating_mul(SPAN_BYTES);
        self.blob_bytes.saturating_sub(start).min(SPAN_BYTES)
    }

    /// Where the nodes for a span are; `None` if there is no such span.
    pub fn span(&self, span: u64) -> Option<SpanPlace> {
        if span >= self.spans() {
            return None;
        }
        let wanted = span * SPAN_GROUPS;
        let (mut start, mut groups, mut node) = (0, self.groups(), 0);
        let mut path = Vec::new();
        while groups > SPAN_GROUPS {
            let left = left_of(groups);
            let right = wanted >= start + left;
            path.push((node * NODE_BYTES, right));
            if right {
                start += left;
                groups -= left;
                // This node, and one fewer than the groups on the left.
                node += left;
            } else {
                groups = left;
                node += 1;
            }
        }
        Some(SpanPlace {
            path,
            offset: node * NODE_BYTES,
            groups,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_blob_of_one_group_needs_no_nodes() {
        for bytes in [0, 1, GROUP_BYTES] {
            let geometry = Geometry::of(bytes);
            assert_eq!((geometry.groups(), geometry.outboard_bytes()), (1, 0));
            assert_eq!(geometry.span(0).unwrap().groups, 1);
            assert_eq!(geometry.span(1), None);
        }
        assert_eq!(Geometry::of(GROUP_BYTES + 1).outboard_bytes(), NODE_BYTES);
    }

    proptest! {
        #[test]
        fn the_nodes_of_spans_and_of_paths_fill_the_outboard(bytes in 0_u64..400 * SPAN_BYTES) {
            let geometry = Geometry::of(bytes);
            let mut seen = vec![false; (geometry.outboard_bytes() / NODE_BYTES) as usize];
            let mut groups = 0;
            for index in 0..geometry.spans() {
                let place = geometry.span(index).unwrap();
                groups += place.groups;
                let first = place.offset / NODE_BYTES;
                for node in first..first + place.groups - 1 {
                    prop_assert!(!std::mem::replace(&mut seen[node as usize], true));
                }
            }
            for index in 0..geometry.spans() {
                for (offset, _) in geometry.span(index).unwrap().path {
                    seen[(offset / NODE_BYTES) as usize] = true;
                }
            }
            prop_assert_eq!(groups, geometry.groups());
            prop_assert!(seen.into_iter().all(|seen| seen));
        }
    }
}
