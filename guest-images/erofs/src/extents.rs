//! Where the content of regular files is.

use crate::format::{BLOCK_BITS, BLOCK_BYTES, HOLE};

/// Which blob of several holds a file's data: an index into the layers of an
/// image, 0 where there is only one blob.
pub(crate) type LayerIndex = u32;

/// The content of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// No bytes at all.
    Empty,
    /// All blocks one after the other from this one.
    Flat {
        /// The blob.
        layer: LayerIndex,
        /// The first block, counted from the blob's beginning.
        block: u32,
    },
    /// A sparse file: chunks that are stored or are holes.
    Chunked {
        /// The blob.
        layer: LayerIndex,
        /// Which chunks are where.
        map: Box<ChunkMap>,
    },
}

/// Which chunks of a sparse file are stored, and where.
///
/// On disk this is an array with an entry for every chunk. In memory it is the
/// runs of stored ones, so that a hole takes nothing however large it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkMap {
    /// The chunk size is `4096 << bits`.
    pub bits: u32,
    /// Number of chunks in the file.
    pub chunks: u64,
    /// Stored chunks in order, adjacent ones joined.
    pub runs: Vec<Run>,
}

/// Stored chunks that follow each other in the file and in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first chunk.
    pub chunk: u64,
    /// How many.
    pub count: u64,
    /// The first block, counted from the blob's beginning.
    pub block: u32,
}

impl ChunkMap {
    /// Bytes of the entry array on disk.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.chunks * crate::format::CHUNK_ENTRY_BYTES
    }

    /// Calls `put` with the entry of every chunk, block addresses moved by
    /// `base`.
    pub(crate) fn entries<E>(
        &self,
        base: u32,
        mut put: impl FnMut(u32) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut next = 0;
        for run in &self.runs {
            for _ in next..run.chunk {
                put(HOLE)?;
            }
            for index in 0..run.count {
                // The last block of the run was checked to have an address.
                put(base + run.block + (index << self.bits) as u32)?;
            }
            next = run.chunk + run.count;
        }
        for _ in next..self.chunks {
            put(HOLE)?;
        }
        Ok(())
    }

    /// Adds the entry of the next chunk as it is on disk.
    pub(crate) fn push_entry(&mut self, entry: u32) {
        let chunk = self.chunks;
        self.chunks += 1;
        if entry == HOLE {
            return;
        }
        if let Some(last) = self.runs.last_mut() {
            let follows = last.chunk + last.count == chunk
                && u64::from(last.block) + (last.count << self.bits) == u64::from(entry);
            if follows {
                last.count += 1;
                return;
            }
        }
        self.runs.push(Run {
            chunk,
            count: 1,
            block: entry,
        });
    }
}

/// Blocks that `bytes` take.
pub(crate) fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

/// The first byte of a block.
pub(crate) fn byte_of(block: u64) -> u64 {
    block << BLOCK_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_its_entry_array() {
        let map = ChunkMap {
            bits: 2,
            chunks: 9,
            runs: vec![
                Run {
                    chunk: 1,
                    count: 2,
                    block: 10,
                },
                Run {
                    chunk: 3,
                    count: 1,
                    block: 100,
                },
                Run {
                    chunk: 7,
                    count: 1,
                    block: 18,
                },
            ],
        };
        let mut entries = Vec::new();
        map.entries(1000, |entry| {
            entries.push(entry);
            Ok::<_, ()>(())
        })
        .unwrap();
        let h = HOLE;
        assert_eq!(entries, [h, 1010, 1014, 1100, h, h, h, 1018, h]);

        let mut read = ChunkMap {
            bits: 2,
            chunks: 0,
            runs: Vec::new(),
        };
        for entry in entries {
            read.push_entry(if entry == HOLE { HOLE } else { entry - 1000 });
        }
        assert_eq!(read, map);
    }
}
