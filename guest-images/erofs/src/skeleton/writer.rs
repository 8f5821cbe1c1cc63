//! A skeleton as it is written.

use std::io::{self, Write};

use super::MAGIC;
use super::encoding::{Places, push_number};
use crate::tar::Recorder;

/// The longest literal segment: its length comes before it, so all of it is held.
const LITERAL_BYTES: usize = 64 << 10;

/// Segments are collected to writes of about this size.
const WRITE_BYTES: usize = 64 << 10;

/// Writes the skeleton of the tar stream that it is told of.
///
/// Memory is bounded whatever it is told; `out` is written in pieces of 64 KiB
/// and more. After an error, what was written should be discarded.
///
/// As a [`Recorder`] it refuses content that is not in ascending order or lies
/// in the first block of the blob: [`PlaceProblem`](super::PlaceProblem), in an
/// error of the kind [`io::ErrorKind::InvalidInput`].
pub struct Writer<W> {
    out: W,
    /// What is ready to be written.
    encoded: Vec<u8>,
    /// CRC-32C of what was written.
    checksum: u32,
    /// The segment that may still grow: a literal, if there is no content.
    literal: Vec<u8>,
    content: Option<Content>,
    places: Places,
    tar_bytes: u64,
}

/// A content segment.
struct Content {
    length: u64,
    place: u64,
}

impl<W: Write> Writer<W> {
    /// A writer to `out`, to which it has written nothing yet.
    pub fn new(out: W) -> Self {
        Self {
            out,
            encoded: MAGIC.to_vec(),
            checksum: 0,
            literal: Vec::new(),
            content: None,
            places: Places::new(u64::MAX),
            tar_bytes: 0,
        }
    }

    /// Bytes of the tar stream told of so far.
    pub fn tar_bytes(&self) -> u64 {
        self.tar_bytes
    }

    /// Writes what is left and the end, and returns what it has written to, flushed.
    ///
    /// To be called when all of the tar stream has been told of. Without it
    /// there is no end, and the skeleton counts as truncated.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_segment()?;
        push_number(&mut self.encoded, 0);
        push_number(&mut self.encoded, self.tar_bytes);
        self.write_out()?;
        self.out.write_all(&self.checksum.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_segment(&mut self) -> io::Result<()> {
        if let Some(content) = self.content.take() {
            // Of 63 bits, as places are.
            push_number(&mut self.encoded, 2 * content.length + 1);
            push_number(&mut self.encoded, content.place);
        } else if !self.literal.is_empty() {
            push_number(&mut self.encoded, 2 * self.literal.len() as u64);
            self.encoded.append(&mut self.literal);
        }
        if self.encoded.len() >= WRITE_BYTES {
            self.write_out()?;
        }
        Ok(())
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.checksum = crc32c::crc32c_append(self.checksum, &self.encoded);
        self.out.write_all(&self.encoded)?;
        self.encoded.clear();
        Ok(())
    }
}

impl<W: Write> Recorder for Writer<W> {
    fn literal(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.content.is_some() && !bytes.is_empty() {
            self.end_segment()?;
        }
        self.tar_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let count = bytes.len().min(LITERAL_BYTES - self.literal.len());
            let (now, later) = bytes.split_at(count);
            self.literal.extend_from_slice(now);
            if self.literal.len() == LITERAL_BYTES {
                self.end_segment()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn content(&mut self, blob_offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let continues = blob_offset == self.places.end();
        let place = self.places.encode(blob_offset, length);
        let place =
            place.map_err(|problem| io::Error::new(io::ErrorKind::InvalidInput, problem))?;
        match &mut self.content {
            Some(content) if continues => content.length += length,
            _ => {
                self.end_segment()?;
                self.content = Some(Content { length, place });
            }
        }
        self.tar_bytes += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skeleton::PlaceProblem;

    fn written(tell: impl FnOnce(&mut Writer<Vec<u8>>)) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        tell(&mut writer);
        let mut bytes = writer.finish().unwrap();
        let checksum = bytes.split_off(bytes.len() - 4);
        assert_eq!(checksum, crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    #[test]
    fn pieces_that_belong_together_are_one_segment() {
        let bytes = written(|writer| {
            writer.literal(b"he").unwrap();
            writer.content(9999, 0).unwrap();
            writer.literal(b"ad").unwrap();
            writer.content(4096, 10).unwrap();
            writer.literal(b"").unwrap();
            writer.content(4106, 20).unwrap();
            writer.content(8192, 1).unwrap();
            writer.literal(b"!").unwrap();
        });
        // Two literals of 4 and 1 bytes; content of 30 bytes at the first place, of
        // 1 at the next block; a stream of 36 bytes.
        assert_eq!(bytes, b"tarskel\x01\x08head\x3d\x00\x03\x00\x02!\x00\x24");
    }

    #[test]
    fn content_before_earlier_content_or_in_the_first_block_is_refused() {
        let mut writer = Writer::new(io::sink());
        for (offset, length, problem) in [
            (0, 4096, PlaceProblem::Backwards),
            (4095, 2, PlaceProblem::Backwards),
            (u64::MAX, 1, PlaceProblem::PastEnd),
            (4096, u64::MAX / 2, PlaceProblem::PastEnd),
        ] {
            let error = writer.content(offset, length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            assert_eq!(inner, Some(&problem));
        }
        writer.content(4096, 100).unwrap();
        assert!(writer.content(4195, 1).is_err());
        assert_eq!(writer.tar_bytes(), 100);
    }

    #[test]
    fn memory_is_bounded_however_much_is_told() {
        let mut writer = Writer::new(io::sink());
        for _ in 0..100 {
            writer.literal(&[7; 100_000]).unwrap();
        }
        let mut offset = 4096;
        for _ in 0..100_000 {
            writer.content(offset, 1).unwrap();
            offset += 4096;
        }
        let held = writer.literal.capacity() + writer.encoded.capacity();
        assert!(held <= 4 * LITERAL_BYTES, "{held} bytes are held");
    }
}
