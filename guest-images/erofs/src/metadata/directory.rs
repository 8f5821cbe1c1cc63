//! Directory blocks.
//!
//! Each block stands alone: fixed-size entries, then their names. The entries of
//! all blocks are sorted by the bytes of the names, "." and ".." among them, and
//! the kernel finds a name by bisecting blocks and then entries
//! (`fs/erofs/namei.c`).

use crate::FileType;
use crate::format::{BLOCK, DIRENT_BYTES};

/// How the entries of a directory spread over blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Full blocks before the last one.
    pub full_blocks: u64,
    /// Used bytes of the last one, at least those of "." and "..".
    pub tail_bytes: usize,
}

impl Shape {
    /// Spreads names of these lengths.
    pub(crate) fn of(name_lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut shape = Self {
            full_blocks: 0,
            tail_bytes: 0,
        };
        for length in name_lengths {
            let entry = DIRENT_BYTES + length;
            if shape.tail_bytes + entry > BLOCK {
                shape.full_blocks += 1;
                shape.tail_bytes = 0;
            }
            shape.tail_bytes += entry;
        }
        shape
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: FileType,
}

/// Yields the blocks of a directory; all but the last are padded to full size.
pub(crate) struct Blocks<'a, I: Iterator<Item = Dirent<'a>>> {
    entries: std::iter::Peekable<I>,
    /// The entries of one block, kept to be allocated once.
    current: Vec<Dirent<'a>>,
}

impl<'a, I: Iterator<Item = Dirent<'a>>> Blocks<'a, I> {
    /// `entries` are sorted by name.
    pub(crate) fn new(entries: I) -> Self {
        Self {
            entries: entries.peekable(),
            current: Vec::new(),
        }
    }

    /// Puts the next block into `block`; `false` after the last one.
    pub(crate) fn next_into(&mut self, block: &mut Vec<u8>) -> bool {
        block.clear();
        self.current.clear();
        let mut used = 0;
        while let Some(entry) = self
            .entries
            .next_if(|entry| used + DIRENT_BYTES + entry.name.len() <= BLOCK)
        {
            used += DIRENT_BYTES + entry.name.len();
            self.current.push(entry);
        }
        if self.current.is_empty() {
            return false;
        }
        // Less than a block, so 16 bits.
        let mut name_offset = (self.current.len() * DIRENT_BYTES) as u16;
        for entry in &self.current {
            block.extend_from_slice(&entry.nid.to_le_bytes());
            block.extend_from_slice(&name_offset.to_le_bytes());
            block.push(entry.file_type.directory_entry_type());
            block.push(0);
            name_offset += entry.name.len() as u16;
        }
        for entry in &self.current {
            block.extend_from_slice(entry.name);
        }
        if self.entries.peek().is_some() {
            block.resize(BLOCK, 0);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(names: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut blocks = Blocks::new(names.iter().map(|name| Dirent {
            name,
            nid: 7,
            file_type: FileType::Regular,
        }));
        let mut all = Vec::new();
        let mut block = Vec::new();
        while blocks.next_into(&mut block) {
            all.push(block.clone());
        }
        all
    }

    #[test]
    fn the_shape_announces_the_blocks() {
        for count in [1, 2, 15, 16, 31, 100, 1000] {
            for length in [1, 6, 255] {
                let names = vec![vec![b'n'; length]; count];
                let blocks = blocks(&names);
                let shape = Shape::of(names.iter().map(Vec::len));
                assert_eq!(shape.full_blocks as usize, blocks.len() - 1);
                let (last, full) = blocks.split_last().unwrap();
                assert_eq!(shape.tail_bytes, last.len());
                assert!(full.iter().all(|block| block.len() == BLOCK));
            }
        }
    }

    #[test]
    fn entries_come_before_the_names_they_point_at() {
        let blocks = blocks(&[b".".to_vec(), b"..".to_vec(), b"abc".to_vec()]);
        assert_eq!(blocks.len(), 1);
        assert_eq!(blocks[0].len(), 3 * 12 + 6);
        assert_eq!(&blocks[0][..12], [7, 0, 0, 0, 0, 0, 0, 0, 36, 0, 1, 0]);
        assert_eq!(&blocks[0][36..], b"...abc");
    }
}
