//! The content of regular files, from the tar stream to the blob.

use std::io::{Read, Seek, Write};

use super::LayerError;
use crate::blob::BlobWriter;
use crate::extents::{ChunkMap, Content, Run, byte_of};
use crate::sparse::{self, Plan};
use crate::tar::{self, Recorder, Segment};

/// Copies a file's content to the blob.
pub(super) fn store<R: Read, K: Recorder, W: Write + Seek>(
    size: u64,
    segments: Option<&[Segment]>,
    tar: &mut tar::Reader<R, K>,
    blob: &mut BlobWriter<W>,
) -> Result<Content, LayerError> {
    if size == 0 {
        return Ok(Content::Empty);
    }
    let flat = Content::Flat {
        layer: 0,
        block: blob.next_block(),
    };
    let whole = [Segment {
        offset: 0,
        length: size,
    }];
    let content = match segments.map(|segments| (segments, sparse::plan(size, segments))) {
        None => {
            store_range(0, size, &whole, tar, blob)?;
            flat
        }
        Some((segments, Plan::Flat)) => {
            store_range(0, size, segments, tar, blob)?;
            flat
        }
        Some((segments, Plan::Chunked(map))) => Content::Chunked {
            layer: 0,
            map: Box::new(store_chunks(map, size, segments, tar, blob)?),
        },
    };
    blob.align()?;
    Ok(content)
}

fn store_chunks<R: Read, K: Recorder, W: Write + Seek>(
    mut map: ChunkMap,
    size: u64,
    mut segments: &[Segment],
    tar: &mut tar::Reader<R, K>,
    blob: &mut BlobWriter<W>,
) -> Result<ChunkMap, LayerError> {
    let first_block = blob.next_block();
    let blocks = |run: &Run| sparse::run_blocks(size, map.bits, run.chunk, run.count);
    // What fits the blob has block numbers that fit 32 bits.
    blob.reserve(byte_of(map.runs.iter().map(blocks).sum()))?;
    for run in &map.runs {
        let start = byte_of(run.chunk << map.bits);
        let end = start + byte_of(blocks(run));
        // No segment reaches past the chunks that hold it, and those are here.
        let count = segments.partition_point(|segment| segment.offset < end);
        let (here, later) = segments.split_at(count);
        store_range(start, end, here, tar, blob)?;
        segments = later;
    }
    for run in &mut map.runs {
        run.block += first_block;
    }
    Ok(map)
}

/// Writes the bytes from `start` to `end`: the segments, zeros between them.
fn store_range<R: Read, K: Recorder, W: Write + Seek>(
    start: u64,
    end: u64,
    segments: &[Segment],
    tar: &mut tar::Reader<R, K>,
    blob: &mut BlobWriter<W>,
) -> Result<(), LayerError> {
    let mut position = start;
    for segment in segments {
        blob.zeros(segment.offset - position)?;
        let blob_offset = blob.position();
        blob.fill_from(segment.length, |space| {
            tar.read_data(space).map_err(LayerError::from)
        })?;
        tar.record_content(blob_offset, segment.length)?;
        position = segment.offset + segment.length;
    }
    Ok(blob.zeros(end - position)?)
}
