//! How a sparse file is laid out: which chunk size, or none.

use crate::extents::{ChunkMap, Run, blocks_of, byte_of};
use crate::format::{BLOCK_BITS, CHUNK_ENTRY_BYTES, MAX_CHUNK_BITS};
use crate::tar::Segment;

/// The layout of a sparse file.
pub(crate) enum Plan {
    /// All blocks, the holes as zeros: no larger than any other way.
    Flat,
    /// Chunks. The runs' blocks count from the file's first one.
    Chunked(ChunkMap),
}

/// Chooses what makes the blob smallest.
///
/// A smaller chunk stores fewer zeros around the data and needs more entries in
/// the block map. Taking the cheapest sum, rather than a fixed size, also bounds
/// both: a header that announces terabytes of hole costs a few entries, and no
/// map is larger than storing the data in another chunk size would have been.
pub(crate) fn plan(size: u64, segments: &[Segment]) -> Plan {
    let flat = byte_of(blocks_of(size));
    let largest = (0..=MAX_CHUNK_BITS).rev().map(|bits| {
        let table = size.div_ceil(1 << (BLOCK_BITS + bits)) * CHUNK_ENTRY_BYTES;
        (
            table.saturating_add(byte_of(stored_blocks(size, segments, bits))),
            bits,
        )
    });
    // The first of equals: the larger chunk, and so the shorter map.
    let (cost, bits) = largest.min_by_key(|(cost, _)| *cost).unwrap_or((flat, 0));
    if flat <= cost {
        return Plan::Flat;
    }
    let mut block = 0;
    let runs = runs(segments, bits).map(|(chunk, count)| {
        let run = Run {
            chunk,
            count,
            // Within the blob's limit, or it is never written.
            block: block as u32,
        };
        block += run_blocks(size, bits, chunk, count);
        run
    });
    Plan::Chunked(ChunkMap {
        bits,
        chunks: size.div_ceil(1 << (BLOCK_BITS + bits)),
        runs: runs.collect(),
    })
}

/// Blocks that a run takes: whole chunks, except that nothing is stored past the
/// end of the file.
pub(crate) fn run_blocks(size: u64, bits: u32, chunk: u64, count: u64) -> u64 {
    (count << bits).min(blocks_of(size) - (chunk << bits))
}

fn stored_blocks(size: u64, segments: &[Segment], bits: u32) -> u64 {
    runs(segments, bits)
        .map(|(chunk, count)| run_blocks(size, bits, chunk, count))
        .sum()
}

/// The chunks that hold data, as first chunk and count, adjacent ones joined.
fn runs(segments: &[Segment], bits: u32) -> impl Iterator<Item = (u64, u64)> {
    let shift = BLOCK_BITS + bits;
    let mut chunks = segments
        .iter()
        .map(move |s| (s.offset >> shift, (s.offset + s.length - 1) >> shift))
        .peekable();
    std::iter::from_fn(move || {
        let (first, mut last) = chunks.next()?;
        while let Some((_, end)) = chunks.next_if(|(start, _)| *start <= last + 1) {
            last = end;
        }
        Some((first, last - first + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(list: &[(u64, u64)]) -> Vec<Segment> {
        let segment = |(offset, length)| Segment { offset, length };
        list.iter().copied().map(segment).collect()
    }

    fn chunked(size: u64, list: &[(u64, u64)]) -> ChunkMap {
        match plan(size, &segments(list)) {
            Plan::Chunked(map) => map,
            Plan::Flat => panic!("laid out flat"),
        }
    }

    #[test]
    fn terabytes_of_hole_cost_almost_nothing() {
        assert_eq!(chunked(1 << 40, &[]).chunks, 1);
        let map = chunked(16 << 40, &[]);
        assert!(map.runs.is_empty());
        assert_eq!(map.chunks, 2);
        let map = chunked(16 << 40, &[(12 << 40, 1)]);
        let stored = map
            .runs
            .iter()
            .map(|run| run.count << map.bits)
            .sum::<u64>();
        assert!(map.table_bytes() + 4096 * stored <= 16 << 20);
    }

    #[test]
    fn a_file_with_nothing_to_save_is_flat() {
        assert!(matches!(plan(10, &segments(&[(9, 1)])), Plan::Flat));
        let nearly_full = segments(&[(0, 4096), (4097, 4095)]);
        assert!(matches!(plan(8192, &nearly_full), Plan::Flat));
        assert!(matches!(plan(0, &[]), Plan::Flat));
    }

    #[test]
    fn data_scattered_widely_gets_chunks_larger_than_a_block() {
        let list: Vec<_> = (0..64).map(|n| (n << 30, 1)).collect();
        let map = chunked(64 << 30, &list);
        assert!(map.bits > 0);
        // Neither the map nor the zeros around the data get out of hand.
        let stored = 64 * (4096 << map.bits);
        assert!(map.table_bytes() + stored < 16 << 20);
    }

    #[test]
    fn nothing_is_stored_past_the_end_of_the_file() {
        let size = (1 << 30) + 1;
        let list = segments(&[(0, 1), (1 << 30, 1)]);
        let Plan::Chunked(map) = plan(size, &list) else {
            panic!("laid out flat");
        };
        let last = map.runs.last().unwrap();
        assert_eq!(run_blocks(size, map.bits, last.chunk, last.count), 1);
    }

    #[test]
    fn segments_in_one_chunk_or_in_neighbours_form_one_run() {
        let list = segments(&[(0, 1), (100, 1), (4096, 1), (12_288, 4096)]);
        assert_eq!(runs(&list, 0).collect::<Vec<_>>(), [(0, 2), (3, 1)]);
        assert_eq!(runs(&list, 1).collect::<Vec<_>>(), [(0, 2)]);
        assert_eq!(runs(&list, 2).collect::<Vec<_>>(), [(0, 1)]);
    }
}
