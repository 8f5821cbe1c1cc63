//! Layers of random files, of any size, made as they are read: nothing compresses them,
//! and any part of one can be had alone.

use std::io::{self, Read};

use hostagent::image::digest::Digest;
use sha2::{Digest as _, Sha256};

use crate::error::{BenchError, host};

/// What a tar archive consists of.
const BLOCK_BYTES: u64 = 512;

/// The tar stream of a layer.
#[derive(Debug, Clone, Copy)]
pub struct RandomLayer {
    /// How many files it has.
    pub files: u64,
    /// The length of each, a multiple of 512.
    pub file_bytes: u64,
}

impl RandomLayer {
    /// The length of the tar stream.
    pub fn bytes(self) -> u64 {
        // Two blocks of zeros are the end.
        self.files * (BLOCK_BYTES + self.file_bytes) + 2 * BLOCK_BYTES
    }

    /// The tar stream from `offset` on.
    pub fn reader(self, offset: u64) -> impl Read + Send {
        Reader {
            layer: self,
            offset,
        }
    }

    /// What the tar stream is called.
    pub fn digest(self) -> Result<Digest, BenchError> {
        let mut hash = Sha256::new();
        let mut reader = io::BufReader::with_capacity(1 << 20, self.reader(0));
        io::copy(&mut reader, &mut hash).map_err(host("hash a layer"))?;
        Ok(Digest::from(<[u8; 32]>::from(hash.finalize())))
    }

    fn block(self, number: u64) -> [u8; BLOCK_BYTES as usize] {
        let entry_blocks = 1 + self.file_bytes / BLOCK_BYTES;
        let mut block = [0; BLOCK_BYTES as usize];
        match (number / entry_blocks, number % entry_blocks) {
            (file, _) if file >= self.files => {}
            (file, 0) => self.header(file, &mut block),
            _ => {
                let (words, _) = block.as_chunks_mut::<8>();
                for (word, index) in words.iter_mut().zip(number * BLOCK_BYTES / 8..) {
                    *word = mixed(index).to_le_bytes();
                }
            }
        }
        block
    }

    /// The header of a regular file (POSIX, "pax Interchange Format", ustar).
    fn header(self, file: u64, block: &mut [u8; BLOCK_BYTES as usize]) {
        let mut put = |offset: usize, text: &str| {
            block[offset..offset + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, &format!("random-{file:06}"));
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", self.file_bytes));
        put(136, "00000000000\0");
        // The sum is that of a header with spaces in its own place.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// The output function of SplitMix64: a number for each number, in no order.
pub fn mixed(index: u64) -> u64 {
    let mut word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

struct Reader {
    layer: RandomLayer,
    offset: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() && self.offset < self.layer.bytes() {
            let block = self.layer.block(self.offset / BLOCK_BYTES);
            let rest = &block[(self.offset % BLOCK_BYTES) as usize..];
            let count = rest.len().min(buffer.len() - filled);
            buffer[filled..filled + count].copy_from_slice(&rest[..count]);
            filled += count;
            self.offset += count as u64;
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LAYER: RandomLayer = RandomLayer {
        files: 3,
        file_bytes: 1536,
    };

    fn whole() -> Vec<u8> {
        let mut bytes = Vec::new();
        LAYER.reader(0).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn it_is_an_archive_of_its_length_and_digest() {
        let bytes = whole();
        assert_eq!(bytes.len() as u64, LAYER.bytes());
        assert_eq!(LAYER.digest().unwrap(), Digest::of(&bytes));
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("layer.tar");
        std::fs::write(&archive, bytes).unwrap();
        let listed = Command::new("tar").arg("tvf").arg(archive).output();
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        assert_eq!(listed.lines().count(), 3, "{listed}");
        assert!(
            listed.lines().all(|line| line.contains(" 1536 ")),
            "{listed}"
        );
    }

    #[test]
    fn every_part_is_that_of_the_whole() {
        let bytes = whole();
        for offset in [0, 1, 511, 512, 2000, bytes.len() - 1, bytes.len()] {
            let mut rest = Vec::new();
            LAYER.reader(offset as u64).read_to_end(&mut rest).unwrap();
            assert!(rest == bytes[offset..], "{offset}");
        }
    }
}
