//! The bytes under a tar stream: counted, bounded, buffered.

use std::io::{self, Read};

use super::{Recorder, TarError};

/// Small reads are served from a buffer of this size, larger ones go straight
/// to their destination. Layers are mostly small files, and a system call costs
/// as much as copying some ten kilobytes.
const BUFFER_BYTES: usize = 128 << 10;

/// A reader that knows its position and stops at a limit. It tells its recorder
/// what is read in full or passed over; of what [`read`](Input::read) hands out,
/// the caller knows what becomes of it.
pub(super) struct Input<R, K> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes handed out.
    position: u64,
    /// Bytes taken from the reader; may be ahead of `position`.
    received: u64,
    limit: u64,
    recorder: K,
}

impl<R: Read, K: Recorder> Input<R, K> {
    pub(super) fn new(reader: R, limit: u64, recorder: K) -> Self {
        Self {
            reader,
            buffer: vec![0; BUFFER_BYTES].into(),
            start: 0,
            end: 0,
            position: 0,
            received: 0,
            limit,
            recorder,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Reads some bytes: 0 at the end of the stream or if nothing is wanted.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        if into.is_empty() {
            return Ok(0);
        }
        let count = if self.start == self.end && into.len() >= self.buffer.len() {
            receive(&mut self.reader, into, &mut self.received, self.limit)?
        } else {
            self.fill()?;
            let count = into.len().min(self.end - self.start);
            into[..count].copy_from_slice(&self.buffer[self.start..][..count]);
            self.start += count;
            count
        };
        self.position += count as u64;
        Ok(count)
    }

    /// Fills `into`, or returns how much there was before the stream ended.
    pub(super) fn read_full(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        let mut done = 0;
        while done < into.len() {
            match self.read(&mut into[done..])? {
                0 => break,
                count => done += count,
            }
        }
        recorded(self.position, self.recorder.literal(&into[..done]))?;
        Ok(done)
    }

    /// Tells the recorder where bytes from [`read`](Input::read) went: before
    /// anything else is read.
    pub(super) fn record_content(&mut self, blob_offset: u64, length: u64) -> Result<(), TarError> {
        recorded(self.position, self.recorder.content(blob_offset, length))
    }

    /// Passes over `count` bytes and returns how many there were.
    pub(super) fn skip(&mut self, count: u64) -> Result<u64, TarError> {
        let mut left = count;
        while left > 0 {
            self.fill()?;
            let held = self.end - self.start;
            if held == 0 {
                break;
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(held);
            let passed = &self.buffer[self.start..][..step];
            recorded(self.position, self.recorder.literal(passed))?;
            self.start += step;
            self.position += step as u64;
            left -= step as u64;
        }
        Ok(count - left)
    }

    /// Makes sure the buffer holds something unless the stream has ended.
    fn fill(&mut self) -> Result<(), TarError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.end = receive(
                &mut self.reader,
                &mut self.buffer,
                &mut self.received,
                self.limit,
            )?;
        }
        Ok(())
    }
}

fn recorded(offset: u64, result: io::Result<()>) -> Result<(), TarError> {
    result.map_err(|source| TarError::Record { offset, source })
}

fn receive(
    reader: &mut impl Read,
    into: &mut [u8],
    received: &mut u64,
    limit: u64,
) -> Result<usize, TarError> {
    loop {
        match reader.read(into) {
            Ok(count) => {
                *received += count as u64;
                if *received > limit {
                    return Err(TarError::TooLong { limit });
                }
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(TarError::Read {
                    offset: *received,
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Unrecorded;
    use super::*;

    #[test]
    fn a_stream_longer_than_the_limit_is_refused() {
        let mut input = Input::new(io::repeat(0), 1 << 20, Unrecorded);
        assert!(matches!(
            input.skip(u64::MAX),
            Err(TarError::TooLong { limit: 1_048_576 })
        ));
    }

    #[test]
    fn reads_of_any_size_see_the_same_bytes() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut input = Input::new(bytes.as_slice(), u64::MAX, Unrecorded);
        let mut seen = Vec::new();
        let mut sizes = [1, 511, 512, 4096, BUFFER_BYTES - 1, BUFFER_BYTES, 300_000]
            .into_iter()
            .cycle();
        loop {
            let mut part = vec![0; sizes.next().unwrap()];
            let count = input.read(&mut part).unwrap();
            seen.extend_from_slice(&part[..count]);
            if count == 0 {
                break;
            }
        }
        assert!(seen == bytes);
        assert_eq!(input.position(), 1_000_000);
    }
}
