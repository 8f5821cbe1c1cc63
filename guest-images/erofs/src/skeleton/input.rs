//! The bytes of a skeleton: counted, summed, buffered.

use std::io::{BufRead, BufReader, ErrorKind, Read};

use super::SkeletonError;
use super::encoding::{MAX_NUMBER_BYTES, parse_number};

const BUFFER_BYTES: usize = 64 << 10;

/// A skeleton as it is read.
pub(super) struct Input<S> {
    reader: BufReader<S>,
    position: u64,
    checksum: u32,
}

impl<S: Read> Input<S> {
    pub(super) fn new(reader: S) -> Self {
        Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, reader),
            position: 0,
            checksum: 0,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The CRC-32C of what has been read.
    pub(super) fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Reads some bytes into `into`, which has room for one: at least one.
    pub(super) fn some(&mut self, into: &mut [u8]) -> Result<usize, SkeletonError> {
        let count = self.take(into)?;
        self.checksum = crc32c::crc32c_append(self.checksum, &into[..count]);
        Ok(count)
    }

    /// Fills an array.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SkeletonError> {
        let mut array = [0; N];
        let mut done = 0;
        while done < N {
            done += self.some(&mut array[done..])?;
        }
        Ok(array)
    }

    /// Reads a number.
    pub(super) fn number(&mut self) -> Result<u64, SkeletonError> {
        // Summed as a whole: a call for each byte would cost more than the byte.
        let mut seen = [0; MAX_NUMBER_BYTES];
        let mut length = 0;
        let number = parse_number(|| {
            let byte = &mut seen[length..=length];
            length += self.take(byte)?;
            Ok(byte[0])
        })?;
        self.checksum = crc32c::crc32c_append(self.checksum, &seen[..length]);
        number.ok_or(SkeletonError::Number {
            offset: self.position,
        })
    }

    /// Makes sure that nothing follows.
    pub(super) fn finish(&mut self) -> Result<(), SkeletonError> {
        let offset = self.position;
        loop {
            match self.reader.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(_) => return Err(SkeletonError::TrailingBytes { offset }),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(SkeletonError::Read { offset, source }),
            }
        }
    }

    fn take(&mut self, into: &mut [u8]) -> Result<usize, SkeletonError> {
        let offset = self.position;
        loop {
            match self.reader.read(into) {
                Ok(0) => return Err(SkeletonError::Truncated { offset }),
                Ok(count) => {
                    self.position += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(SkeletonError::Read { offset, source }),
            }
        }
    }
}
