//! The output: one file, written from front to back in large pieces.

use std::io::{self, Seek, SeekFrom, Write};

use crate::extents::{blocks_of, byte_of};
use crate::format::{BLOCK, BLOCK_BYTES};

/// Each write has this size: so many that their number does not matter, few enough to stay in
/// a CPU's second-level cache and to cost a small layer little.
const BUFFER_BYTES: usize = 256 << 10;

/// Why bytes could not be added to the blob.
#[derive(Debug)]
pub(crate) enum BlobError {
    /// The limit, in bytes.
    TooLarge(u64),
    Write(io::Error),
}

/// A blob under construction: block 0 is left for the superblock, which is
/// known last.
pub(crate) struct BlobWriter<W> {
    out: W,
    buffer: Box<[u8]>,
    filled: usize,
    /// Bytes before the buffer.
    flushed: u64,
    limit: u64,
}

impl<W: Write + Seek> BlobWriter<W> {
    /// `out` is empty, `limit` the most bytes it may get.
    pub(crate) fn new(out: W, limit: u64) -> Self {
        // Block addresses have 32 bits and the last one means "hole".
        let addressable = byte_of(u64::from(u32::MAX));
        Self {
            out,
            buffer: vec![0; BUFFER_BYTES].into(),
            filled: BLOCK,
            flushed: 0,
            limit: limit.min(addressable),
        }
    }

    /// Bytes so far, the reserved block included.
    pub(crate) fn position(&self) -> u64 {
        self.flushed + self.filled as u64
    }

    /// The block at which the next byte goes, for a position on a boundary.
    pub(crate) fn next_block(&self) -> u32 {
        debug_assert_eq!(self.position() % BLOCK_BYTES, 0);
        // Within the limit, which is addressable.
        blocks_of(self.position()) as u32
    }

    /// Refuses what would not fit, before any of it is written.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), BlobError> {
        let end = self.position().checked_add(bytes);
        match end {
            Some(end) if byte_of(blocks_of(end)) <= self.limit => Ok(()),
            _ => Err(BlobError::TooLarge(self.limit)),
        }
    }

    /// Adds `length` bytes that `read` puts into the slices it is given; it
    /// returns how many, at least one.
    pub(crate) fn fill_from<E: From<BlobError>>(
        &mut self,
        length: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        self.reserve(length)?;
        let mut left = length;
        while left > 0 {
            let space = self.space()?;
            let wanted = usize::try_from(left).map_or(space.len(), |n| n.min(space.len()));
            let count = read(&mut space[..wanted])?;
            debug_assert!(count > 0);
            self.filled += count;
            left -= count as u64;
        }
        Ok(())
    }

    /// Adds these bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), BlobError> {
        self.reserve(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let space = self.space()?;
            let count = space.len().min(bytes.len());
            let (now, later) = bytes.split_at(count);
            space[..count].copy_from_slice(now);
            self.filled += count;
            bytes = later;
        }
        Ok(())
    }

    /// Adds zeros.
    pub(crate) fn zeros(&mut self, length: u64) -> Result<(), BlobError> {
        self.fill_from(length, |space| {
            space.fill(0);
            Ok(space.len())
        })
    }

    /// Adds zeros up to the next block boundary.
    pub(crate) fn align(&mut self) -> Result<(), BlobError> {
        let position = self.position();
        self.zeros(byte_of(blocks_of(position)) - position)
    }

    /// Writes what is left and puts the superblock in its place.
    pub(crate) fn finish(mut self, superblock: &[u8; BLOCK]) -> Result<(), BlobError> {
        self.flush()?;
        self.out
            .seek(SeekFrom::Start(0))
            .map_err(BlobError::Write)?;
        self.out.write_all(superblock).map_err(BlobError::Write)?;
        self.out.flush().map_err(BlobError::Write)
    }

    /// The unused part of the buffer, never empty.
    fn space(&mut self) -> Result<&mut [u8], BlobError> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn flush(&mut self) -> Result<(), BlobError> {
        let full = &self.buffer[..self.filled];
        self.out.write_all(full).map_err(BlobError::Write)?;
        self.flushed += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn pieces_of_any_size_arrive_in_order_behind_the_superblock() {
        let mut out = Cursor::new(Vec::new());
        let mut blob = BlobWriter::new(&mut out, u64::MAX);
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
        let (first, second) = data.split_at(2_500_000);
        blob.write(first).unwrap();
        let mut source = second;
        blob.fill_from(second.len() as u64, |space| {
            let count = space.len().min(77_777).min(source.len());
            space[..count].copy_from_slice(&source[..count]);
            source = &source[count..];
            Ok::<_, BlobError>(count)
        })
        .unwrap();
        blob.align().unwrap();
        assert_eq!(blob.next_block(), 734);
        blob.finish(&[9; BLOCK]).unwrap();
        let bytes = out.into_inner();
        assert_eq!(bytes.len(), 734 * BLOCK);
        assert!(bytes[..BLOCK].iter().all(|b| *b == 9));
        assert!(bytes[BLOCK..][..data.len()] == data);
        assert!(bytes[BLOCK + data.len()..].iter().all(|b| *b == 0));
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let mut blob = BlobWriter::new(Cursor::new(Vec::new()), 3 * BLOCK_BYTES);
        blob.write(&[1; BLOCK]).unwrap();
        assert!(blob.reserve(BLOCK_BYTES).is_ok());
        assert!(matches!(
            blob.zeros(BLOCK_BYTES + 1),
            Err(BlobError::TooLarge(12_288))
        ));
        assert!(matches!(
            blob.reserve(u64::MAX),
            Err(BlobError::TooLarge(_))
        ));
        assert_eq!(blob.position(), 2 * BLOCK_BYTES);
    }
}
