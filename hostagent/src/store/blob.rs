//! The file of a blob, and the checksum that tells whether it is still whole.
//!
//! The checksum is XXH64 over pieces of 1 MiB. It guards against failing disks
//! and interrupted writes, not against an adversary: whoever can write to the
//! store is root already, and what comes in from outside has been checked by
//! SHA-256. It is what hashing may cost here: on a CPU without SHA instructions
//! 200 MiB take 0.1 s with XXH64, and 1.5 to 3 s with SHA-256 or BLAKE3. When
//! reads are verified, an outboard hash tree takes its place beside the blob.

use std::collections::BTreeSet;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

/// Bytes under one XXH64.
const PIECE_BYTES: u64 = 1 << 20;

/// The length and the checksum of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobIdentity {
    /// Its length in bytes.
    pub bytes: u64,
    /// `xxh64-1m:` and 16 hexadecimal digits: XXH64 over the little-endian XXH64
    /// values of the blob's pieces of 1 MiB.
    pub checksum: String,
}

/// A blob that is being written. Its checksum is computed on the way, so that
/// nothing is read again but the pieces that were written out of order.
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    position: u64,
    length: u64,
    /// The hash of the last piece, as far as it was appended to.
    last: XxHash64,
    /// The hashes of the pieces before the last.
    pieces: Vec<u64>,
    /// Pieces whose hash above is not that of their bytes.
    rewritten: BTreeSet<u64>,
}

impl BlobWriter {
    /// Creates the file, which must not exist.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(Self {
            file,
            position: 0,
            length: 0,
            last: XxHash64::with_seed(0),
            pieces: Vec::new(),
            rewritten: BTreeSet::new(),
        })
    }

    /// Completes the checksum and brings the blob to disk.
    pub fn finish(mut self) -> io::Result<BlobIdentity> {
        let last = self.last.finish();
        if !self.length.is_multiple_of(PIECE_BYTES) {
            self.pieces.push(last);
        }
        let mut buffer = vec![0; PIECE_BYTES as usize];
        for index in &self.rewritten {
            let start = index * PIECE_BYTES;
            let length = PIECE_BYTES.min(self.length - start) as usize;
            self.file.read_exact_at(&mut buffer[..length], start)?;
            self.pieces[*index as usize] = XxHash64::oneshot(0, &buffer[..length]);
        }
        self.file.sync_data()?;
        Ok(BlobIdentity {
            bytes: self.length,
            checksum: checksum_text(&self.pieces),
        })
    }

    /// Takes note of bytes that continue the file.
    fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = PIECE_BYTES - self.length % PIECE_BYTES;
            let count = bytes.len().min(left as usize);
            self.last.write(&bytes[..count]);
            self.length += count as u64;
            bytes = &bytes[count..];
            if self.length.is_multiple_of(PIECE_BYTES) {
                let piece = std::mem::replace(&mut self.last, XxHash64::with_seed(0));
                self.pieces.push(piece.finish());
            }
        }
    }

    /// Takes note that the file ends at `end`, with a hole before it.
    fn extend(&mut self, end: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.length < end {
            let count = ZEROS.len().min((end - self.length) as usize);
            self.append(&ZEROS[..count]);
        }
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.position)?;
        let end = self.position + written as u64;
        self.extend(self.position);
        let known = (self.length - self.position).min(written as u64);
        if known > 0 {
            let first = self.position / PIECE_BYTES;
            let last = (self.position + known - 1) / PIECE_BYTES;
            self.rewritten.extend(first..=last);
        }
        self.append(&bytes[known as usize..written]);
        self.position = end;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for BlobWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// The identity of what a file holds now.
pub fn identify(mut file: &File) -> io::Result<BlobIdentity> {
    file.seek(SeekFrom::Start(0))?;
    let mut pieces = Vec::new();
    let mut bytes = 0;
    let mut buffer = vec![0; PIECE_BYTES as usize];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            break;
        }
        bytes += filled as u64;
        pieces.push(XxHash64::oneshot(0, &buffer[..filled]));
    }
    Ok(BlobIdentity {
        bytes,
        checksum: checksum_text(&pieces),
    })
}

fn checksum_text(pieces: &[u64]) -> String {
    let mut hash = XxHash64::with_seed(0);
    for piece in pieces {
        hash.write(&piece.to_le_bytes());
    }
    format!("xxh64-1m:{:016x}", hash.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_single_changed_bit_changes_the_checksum() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        let mut writer = BlobWriter::create(&path).unwrap();
        writer.write_all(&vec![7; 3_000_000]).unwrap();
        let identity = writer.finish().unwrap();
        assert_eq!(identify(&File::open(&path).unwrap()).unwrap(), identity);

        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[6], 2_500_000).unwrap();
        assert_ne!(identify(&file).unwrap(), identity);
    }

    #[test]
    fn an_existing_file_is_never_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        std::fs::write(&path, "old").unwrap();
        assert!(BlobWriter::create(&path).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_order_of_writes_has_the_checksum_of_the_file(
            writes in proptest::collection::vec((0..4_000_000u64, 0..1_500_000usize, any::<bool>()), 1..6),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("blob");
            let mut writer = BlobWriter::create(&path).unwrap();
            for (index, (offset, length, append)) in writes.into_iter().enumerate() {
                let to = if append { SeekFrom::End(0) } else { SeekFrom::Start(offset) };
                writer.seek(to).unwrap();
                let bytes: Vec<u8> = (0..length).map(|i| (i + index) as u8).collect();
                writer.write_all(&bytes).unwrap();
            }
            let written = writer.finish().unwrap();
            prop_assert_eq!(identify(&File::open(&path).unwrap()).unwrap(), written);
        }
    }
}
