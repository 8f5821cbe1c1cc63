//! Reading the content of regular files.

use super::{Corruption, Image, ImageError, Inode, ReadAt};
use crate::FileType;
use crate::extents::{ChunkMap, Content, LayerIndex, blocks_of, byte_of};
use crate::format::{
    BLOCK, BLOCK_BITS, CHUNK_ENTRY_BYTES, DataLayout, HOLE, MAX_CHUNK_BITS, u32_at,
};

/// Checks the chunk format of an inode.
pub(super) fn check_chunks(inode: &Inode) -> Result<(), Corruption> {
    // Flags beyond the size are not used by this crate.
    if inode.union > MAX_CHUNK_BITS || inode.size == 0 {
        return Err(Corruption::Format);
    }
    Ok(())
}

impl<R: ReadAt> Image<R> {
    /// Reads the bytes of a regular file at `offset`, holes as zeros, and
    /// returns how many: fewer than asked for only at the end of the file.
    pub fn read_at(
        &self,
        inode: &Inode,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize, ImageError> {
        if inode.file_type != FileType::Regular {
            return Err(inode.corrupt(Corruption::Type));
        }
        let available = inode.size.saturating_sub(offset);
        let count = usize::try_from(available).map_or(buffer.len(), |n| n.min(buffer.len()));
        let mut rest = &mut buffer[..count];
        let mut position = offset;
        while !rest.is_empty() {
            let (start, length) = self.stored_at(inode, position)?;
            let step = usize::try_from(length).map_or(rest.len(), |n| n.min(rest.len()));
            let (now, later) = rest.split_at_mut(step);
            match start {
                Some(start) => self.source.read(now, start)?,
                None => now.fill(0),
            }
            rest = later;
            position += step as u64;
        }
        Ok(count)
    }

    /// Where the byte at `position` of the file is in the image, `None` in a
    /// hole, and for how many bytes that goes on. `position` is in the file.
    fn stored_at(&self, inode: &Inode, position: u64) -> Result<(Option<u64>, u64), ImageError> {
        if inode.layout != DataLayout::Chunked {
            let start = byte_of(u64::from(inode.union)) + position;
            return Ok((Some(start), inode.size - position));
        }
        let shift = BLOCK_BITS + inode.union;
        let chunk = position >> shift;
        let within = position - (chunk << shift);
        let left = (1 << shift) - within;
        let entry_offset = inode.tail_offset() + chunk * CHUNK_ENTRY_BYTES;
        if !self.source.contains(entry_offset, CHUNK_ENTRY_BYTES) {
            return Err(inode.corrupt(Corruption::OutOfBounds));
        }
        let mut entry = [0; CHUNK_ENTRY_BYTES as usize];
        self.source.read_metadata(&mut entry, entry_offset)?;
        let block = u32::from_le_bytes(entry);
        self.check_chunk(inode, chunk, block)?;
        let start = (block != HOLE).then(|| byte_of(u64::from(block)) + within);
        Ok((start, left.min(inode.size - position)))
    }

    /// Where a file's content is, as a file of `layer`.
    pub(crate) fn content(&self, inode: &Inode, layer: LayerIndex) -> Result<Content, ImageError> {
        if inode.size == 0 {
            return Ok(Content::Empty);
        }
        if inode.layout != DataLayout::Chunked {
            return Ok(Content::Flat {
                layer,
                block: inode.union,
            });
        }
        let chunks = inode.size.div_ceil(1 << (BLOCK_BITS + inode.union));
        let mut map = ChunkMap {
            bits: inode.union,
            chunks: 0,
            runs: Vec::new(),
        };
        let mut offset = inode.tail_offset();
        // Before anything is read: the size of the file may be a lie.
        let table_fits = chunks
            .checked_mul(CHUNK_ENTRY_BYTES)
            .is_some_and(|bytes| self.source.contains(offset, bytes));
        if !table_fits {
            return Err(inode.corrupt(Corruption::OutOfBounds));
        }
        let mut buffer = [0; BLOCK];
        while map.chunks < chunks {
            let left = (chunks - map.chunks) * CHUNK_ENTRY_BYTES;
            let length = left.min(BLOCK as u64) as usize;
            let part = &mut buffer[..length];
            self.source.read_metadata(part, offset)?;
            for at in (0..length).step_by(CHUNK_ENTRY_BYTES as usize) {
                let block = u32_at(part, at);
                self.check_chunk(inode, map.chunks, block)?;
                map.push_entry(block);
            }
            offset += length as u64;
        }
        Ok(Content::Chunked {
            layer,
            map: Box::new(map),
        })
    }

    /// Checks that a stored chunk of the file is in the image.
    fn check_chunk(&self, inode: &Inode, chunk: u64, block: u32) -> Result<(), ImageError> {
        let blocks = (1 << inode.union).min(blocks_of(inode.size) - (chunk << inode.union));
        if block != HOLE && !self.has_blocks(block, blocks) {
            return Err(inode.corrupt(Corruption::OutOfBounds));
        }
        Ok(())
    }
}
