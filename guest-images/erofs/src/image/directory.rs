//! Reading directories.

use super::{Corruption, Image, ImageError, Inode, ReadAt};
use crate::FileType;
use crate::format::{BLOCK, BLOCK_BYTES, DIRENT_BYTES, u16_at, u64_at};

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name, never "." or "..".
    pub name: Box<[u8]>,
    /// The inode it names.
    pub nid: u64,
    /// The type the directory gives for it.
    pub file_type: FileType,
}

impl<R: ReadAt> Image<R> {
    /// The names in a directory in the order of their bytes, without "." and
    /// "..".
    pub fn entries(&self, directory: &Inode) -> Result<Vec<DirectoryEntry>, ImageError> {
        if directory.file_type != FileType::Directory {
            return Err(directory.corrupt(Corruption::Type));
        }
        let mut entries = Vec::new();
        let mut buffer = [0; BLOCK];
        let mut offset = 0;
        while offset < directory.size {
            let length = (directory.size - offset).min(BLOCK_BYTES);
            let block = &mut buffer[..length as usize];
            self.read_small(directory, block, offset)?;
            parse_block(block, &mut entries).ok_or(directory.corrupt(Corruption::Directory))?;
            offset += length;
        }
        // The kernel bisects, so a name out of order would be lost to it.
        if !entries.is_sorted_by(|a, b| a.name < b.name) {
            return Err(directory.corrupt(Corruption::Directory));
        }
        Ok(entries)
    }
}

fn parse_block(block: &[u8], entries: &mut Vec<DirectoryEntry>) -> Option<()> {
    let first_name = usize::from(u16_at(block.get(..DIRENT_BYTES)?, 8));
    let (dirents, rest) = block.get(..first_name)?.as_chunks::<DIRENT_BYTES>();
    if dirents.is_empty() || !rest.is_empty() {
        return None;
    }
    for (index, dirent) in dirents.iter().enumerate() {
        let start = usize::from(u16_at(dirent, 8));
        let name = match dirents.get(index + 1) {
            Some(next) => block.get(start..usize::from(u16_at(next, 8)))?,
            // The last name ends at a NUL or with the block.
            None => {
                let rest = block.get(start..)?;
                let end = rest.iter().position(|byte| *byte == 0);
                &rest[..end.unwrap_or(rest.len())]
            }
        };
        if name.is_empty() || name.len() > 255 || name.iter().any(|b| matches!(b, b'/' | 0)) {
            return None;
        }
        let file_type = [
            FileType::Regular,
            FileType::Directory,
            FileType::Symlink,
            FileType::CharDevice,
            FileType::BlockDevice,
            FileType::Fifo,
        ]
        .into_iter()
        .find(|file_type| file_type.directory_entry_type() == dirent[10])?;
        if !matches!(name, b"." | b"..") {
            entries.push(DirectoryEntry {
                name: name.into(),
                nid: u64_at(dirent, 0),
                file_type,
            });
        }
    }
    Some(())
}
