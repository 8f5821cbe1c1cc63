//! Hashing what is read, on a thread of its own.
//!
//! SHA-256 is the most expensive part of taking in a layer on a CPU without
//! instructions for it. A [`HashingReader`] lets the reader of the data and the
//! hash of the same bytes proceed on two CPUs: both look at one buffer, which is
//! filled once and never copied.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use super::digest::Digest;

/// Bytes in one buffer: large beside the cost of handing it over, small beside
/// a CPU's second-level cache.
const CHUNK_BYTES: usize = 256 << 10;
/// Buffers between the reader and the hash: how far one may run ahead.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Reads from `R` and computes the SHA-256 of all it reads.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    current: Arc<Chunk>,
    consumed: usize,
    ended: bool,
    /// Chunks handed over before; the oldest is the first to be free again.
    used: VecDeque<Arc<Chunk>>,
    to_hash: SyncSender<Arc<Chunk>>,
    hash: JoinHandle<Sha256>,
}

#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Chunk {
    fn empty() -> Arc<Self> {
        Arc::new(Self {
            bytes: vec![0; CHUNK_BYTES].into_boxed_slice(),
            filled: 0,
        })
    }
}

impl<R: Read> HashingReader<R> {
    /// Starts the thread that hashes.
    pub fn new(inner: R) -> io::Result<Self> {
        let (to_hash, chunks) = sync_channel::<Arc<Chunk>>(CHUNKS_IN_FLIGHT);
        let hash = std::thread::Builder::new()
            .name("sha256".into())
            .spawn(move || {
                let mut hash = Sha256::new();
                for chunk in chunks {
                    hash.update(&chunk.bytes[..chunk.filled]);
                }
                hash
            })?;
        Ok(Self {
            inner,
            current: Chunk::empty(),
            consumed: 0,
            ended: false,
            used: VecDeque::with_capacity(CHUNKS_IN_FLIGHT + 2),
            to_hash,
            hash,
        })
    }

    /// Reads the source to its end; returns the digest of all that it gave.
    pub fn finish(mut self) -> io::Result<Digest> {
        while !self.ended {
            self.next_chunk()?;
        }
        drop(self.to_hash);
        let hash = self
            .hash
            .join()
            .map_err(|_| io::Error::other("the hashing thread panicked"))?;
        Ok(Digest::from(<[u8; 32]>::from(hash.finalize())))
    }

    /// Replaces `current` by the next bytes of the source and hands them to the
    /// hash too.
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut chunk = self.free_chunk();
        self.consumed = 0;
        let mut filled = 0;
        // `free_chunk` gives a chunk that nobody else holds.
        let buffer = Arc::get_mut(&mut chunk).ok_or_else(|| io::Error::other("buffer in use"))?;
        while filled < CHUNK_BYTES && !self.ended {
            match self.inner.read(&mut buffer.bytes[filled..]) {
                Ok(0) => self.ended = true,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.filled = filled;
        if filled > 0 {
            self.to_hash
                .send(Arc::clone(&chunk))
                .map_err(|_| io::Error::other("the hashing thread ended early"))?;
        }
        let previous = std::mem::replace(&mut self.current, chunk);
        self.used.push_back(previous);
        Ok(())
    }

    /// The oldest chunk if the hash is done with it, else a new one. The channel
    /// bounds how many the hash can hold, so few are ever made.
    fn free_chunk(&mut self) -> Arc<Chunk> {
        match self.used.pop_front() {
            Some(chunk) if Arc::strong_count(&chunk) == 1 => chunk,
            Some(busy) => {
                if self.used.len() < CHUNKS_IN_FLIGHT {
                    self.used.push_front(busy);
                }
                Chunk::empty()
            }
            None => Chunk::empty(),
        }
    }
}

impl<R: Read> BufRead for HashingReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed == self.current.filled && !self.ended {
            self.next_chunk()?;
        }
        Ok(&self.current.bytes[self.consumed..self.current.filled])
    }

    fn consume(&mut self, amount: usize) {
        self.consumed = (self.consumed + amount).min(self.current.filled);
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn what_is_not_consumed_is_hashed_as_well() {
        let data = bytes(3 * CHUNK_BYTES + 17);
        let mut reader = HashingReader::new(&data[..]).unwrap();
        let mut start = [0; 100];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(start, data[..100]);
        assert_eq!(reader.finish().unwrap(), Digest::of(&data));
    }

    #[test]
    fn a_long_source_is_read_unchanged_with_few_buffers() {
        let data = bytes(40 * CHUNK_BYTES);
        let mut reader = HashingReader::new(&data[..]).unwrap();
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, data);
        assert!(reader.used.len() <= CHUNKS_IN_FLIGHT + 2);
        assert_eq!(reader.finish().unwrap(), Digest::of(&data));
    }

    #[test]
    fn an_error_of_the_source_is_passed_on() {
        #[derive(Debug)]
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let error = HashingReader::new(Broken).unwrap().finish().unwrap_err();
        assert_eq!(error.to_string(), "broken");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_sequence_of_reads_sees_and_hashes_the_same_bytes(
            length in 0..2 * CHUNK_BYTES + 5,
            step in 1..CHUNK_BYTES + 3,
        ) {
            let data = bytes(length);
            let mut reader = HashingReader::new(&data[..]).unwrap();
            let mut seen = Vec::new();
            let mut buffer = vec![0; step];
            loop {
                let read = reader.read(&mut buffer).unwrap();
                if read == 0 {
                    break;
                }
                seen.extend_from_slice(&buffer[..read]);
            }
            prop_assert!(seen == data);
            prop_assert_eq!(reader.finish().unwrap(), Digest::of(&data));
        }
    }
}
