//! The bytes under an image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::ImageError;

/// Reads at any position, without a cursor.
pub trait ReadAt {
    /// Fills `buffer` with the bytes at `offset`. Fewer are an error of the kind
    /// [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

/// Metadata is read in windows of this size.
const WINDOW_BYTES: u64 = 128 << 10;

/// Windows kept. A walk reads inodes and directory blocks in the order they were
/// written, so a few would do.
const WINDOWS: usize = 8;

/// A reader with a known length and a cache for small reads, which are what
/// metadata consists of.
pub(super) struct Source<R> {
    reader: R,
    bytes: u64,
    windows: Mutex<Vec<Window>>,
}

struct Window {
    offset: u64,
    content: Vec<u8>,
}

impl<R: ReadAt> Source<R> {
    pub(super) fn new(reader: R, bytes: u64) -> Self {
        Self {
            reader,
            bytes,
            windows: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether `length` bytes at `offset` are within the image.
    pub(super) fn contains(&self, offset: u64, length: u64) -> bool {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= self.bytes)
    }

    /// Reads content: past the cache. The range is within the image.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        self.reader
            .read_exact_at(buffer, offset)
            .map_err(|source| ImageError::Read {
                offset,
                length: buffer.len(),
                source,
            })
    }

    /// Reads metadata: through the cache.
    pub(super) fn read_metadata(
        &self,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> Result<(), ImageError> {
        if !self.contains(offset, buffer.len() as u64) {
            return Err(ImageError::Read {
                offset,
                length: buffer.len(),
                source: io::ErrorKind::UnexpectedEof.into(),
            });
        }
        let mut windows = self
            .windows
            .lock()
            // Its content is replaced as a whole, so it is never half-made.
            .unwrap_or_else(PoisonError::into_inner);
        while !buffer.is_empty() {
            let window = self.window(&mut windows, offset)?;
            let from = (offset - window.offset) as usize;
            let count = buffer.len().min(window.content.len() - from);
            let (now, later) = buffer.split_at_mut(count);
            now.copy_from_slice(&window.content[from..from + count]);
            buffer = later;
            offset += count as u64;
        }
        Ok(())
    }

    /// The window that holds the byte at `offset`, which is within the image.
    fn window<'a>(
        &self,
        windows: &'a mut Vec<Window>,
        offset: u64,
    ) -> Result<&'a Window, ImageError> {
        let start = offset - offset % WINDOW_BYTES;
        let found = windows.iter().position(|window| window.offset == start);
        let window = match found {
            Some(0) => return Ok(&windows[0]),
            Some(index) => windows.remove(index),
            None => {
                windows.truncate(WINDOWS - 1);
                let length = WINDOW_BYTES.min(self.bytes - start);
                let mut content = vec![0; length as usize];
                self.read(&mut content, start)?;
                Window {
                    offset: start,
                    content,
                }
            }
        };
        windows.insert(0, window);
        Ok(&windows[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_across_windows_see_the_bytes_as_they_are() {
        let bytes: Vec<u8> = (0..1_500_000_u32).map(|n| (n % 249) as u8).collect();
        let source = Source::new(bytes.as_slice(), bytes.len() as u64);
        let mut offset = 0;
        for length in [1, 300_000, 64, 131_072, 9, 1_000_000]
            .into_iter()
            .cycle()
            .take(60)
        {
            let mut buffer = vec![0; length];
            source.read_metadata(&mut buffer, offset as u64).unwrap();
            assert!(buffer == bytes[offset..offset + length], "at {offset}");
            offset = (offset + 77_777) % 500_000;
        }
    }

    #[test]
    fn a_read_past_the_end_is_an_error() {
        let source = Source::new(&[0_u8; 100][..], 100);
        for offset in [99, 100, 1 << 40] {
            assert!(source.read_metadata(&mut [0; 2], offset).is_err());
        }
        assert!(!source.contains(u64::MAX, 2));
    }
}
