//! Reading what this crate wrote.
//!
//! An image comes from our own store, but a disk can corrupt it: whatever the
//! bytes, reading ends in a value or an error.

mod content;
mod directory;
mod error;
mod source;

pub use directory::DirectoryEntry;
pub use error::{Corruption, ImageError};
pub use source::ReadAt;

use crate::extents::{blocks_of, byte_of};
use crate::format::{
    BLOCK, BLOCK_BYTES, DataLayout, INODE_BYTES, RawInode, SLOT_BYTES, Superblock,
    XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES, u16_at,
};
use crate::{Attributes, DeviceNumber, FileType, Timestamp, Xattr};
use source::Source;

/// An EROFS image: a layer's blob, or a whole disk of merged layers.
pub struct Image<R> {
    source: Source<R>,
    superblock: Superblock,
}

/// An inode, checked to be of a form that this crate writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    nid: u64,
    file_type: FileType,
    attributes: Attributes,
    size: u64,
    links: u32,
    layout: DataLayout,
    union: u32,
    /// Where the inode is in the image.
    offset: u64,
    xattr_bytes: u64,
}

impl Inode {
    /// Its number within the image, also what `stat` calls `st_ino`.
    pub fn nid(&self) -> u64 {
        self.nid
    }

    /// What it is.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// Permissions, owner, time.
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Bytes in a file, of a symbolic link's target, or of directory data.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Names of a file; 2 and the subdirectories of a directory.
    pub fn links(&self) -> u32 {
        self.links
    }

    /// The number of a character or block device.
    pub fn device(&self) -> Option<DeviceNumber> {
        matches!(self.file_type, FileType::CharDevice | FileType::BlockDevice)
            .then(|| DeviceNumber::decode(self.union))
    }

    /// Where what lies right after the inode and its attributes begins.
    fn tail_offset(&self) -> u64 {
        self.offset + INODE_BYTES as u64 + self.xattr_bytes
    }

    fn corrupt(&self, what: Corruption) -> ImageError {
        ImageError::Corrupt {
            nid: self.nid,
            what,
        }
    }
}

impl<R: ReadAt> Image<R> {
    /// Opens an image of `bytes` bytes.
    pub fn open(reader: R, bytes: u64) -> Result<Self, ImageError> {
        let source = Source::new(reader, bytes);
        if bytes < BLOCK_BYTES {
            return Err(ImageError::Size {
                expected: BLOCK_BYTES,
                actual: bytes,
            });
        }
        let mut block = [0; BLOCK];
        source.read(&mut block, 0)?;
        let superblock = Superblock::decode(&block).map_err(ImageError::Superblock)?;
        let expected = byte_of(u64::from(superblock.blocks));
        if expected != bytes {
            return Err(ImageError::Size {
                expected,
                actual: bytes,
            });
        }
        Ok(Self { source, superblock })
    }

    /// Length of the image.
    pub fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    /// Number of inodes.
    pub fn inodes(&self) -> u64 {
        self.superblock.inodes
    }

    /// The UUID that tells the kernel this file system from others.
    pub fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// The root directory.
    pub fn root(&self) -> Result<Inode, ImageError> {
        let root = self.inode(u64::from(self.superblock.root_nid))?;
        match root.file_type {
            FileType::Directory => Ok(root),
            _ => Err(root.corrupt(Corruption::Type)),
        }
    }

    /// The inode of this number.
    pub fn inode(&self, nid: u64) -> Result<Inode, ImageError> {
        let corrupt = |what| ImageError::Corrupt { nid, what };
        let offset = nid
            .checked_mul(SLOT_BYTES)
            .and_then(|slot| slot.checked_add(byte_of(u64::from(self.superblock.meta_block))))
            .filter(|offset| self.source.contains(*offset, INODE_BYTES as u64))
            .ok_or(corrupt(Corruption::OutOfBounds))?;
        let mut bytes = [0; INODE_BYTES];
        self.source.read_metadata(&mut bytes, offset)?;
        let raw = RawInode::decode(&bytes).ok_or(corrupt(Corruption::Format))?;
        let file_type = FileType::from_mode(raw.mode).ok_or(corrupt(Corruption::Format))?;
        let inode = Inode {
            nid,
            file_type,
            attributes: Attributes {
                permissions: raw.mode & 0o7777,
                uid: raw.uid,
                gid: raw.gid,
                mtime: Timestamp {
                    seconds: raw.mtime_seconds,
                    nanoseconds: raw.mtime_nanoseconds,
                },
            },
            size: raw.size,
            links: raw.links,
            layout: raw.layout,
            union: raw.union,
            offset,
            xattr_bytes: match u64::from(raw.xattr_words) {
                0 => 0,
                words => XATTR_HEADER_BYTES as u64 + 4 * (words - 1),
            },
        };
        self.check(&inode).map_err(corrupt)?;
        Ok(inode)
    }

    /// Finds a path below the root. Symbolic links are not followed: one on the
    /// way means that there is nothing.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Inode>, ImageError> {
        let mut inode = self.root()?;
        for name in path.split(|byte| *byte == b'/').filter(|n| !n.is_empty()) {
            if inode.file_type != FileType::Directory {
                return Ok(None);
            }
            let entries = self.entries(&inode)?;
            match entries.into_iter().find(|entry| *entry.name == *name) {
                Some(entry) => inode = self.inode(entry.nid)?,
                None => return Ok(None),
            }
        }
        Ok(Some(inode))
    }

    /// The extended attributes of an inode, in the order they are stored.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ImageError> {
        if inode.xattr_bytes == 0 {
            return Ok(Vec::new());
        }
        // At most 256 KiB, by the width of the field it comes from.
        let mut bytes = vec![0; inode.xattr_bytes as usize];
        let start = inode.offset + INODE_BYTES as u64;
        self.source.read_metadata(&mut bytes, start)?;
        parse_xattrs(&bytes).ok_or(inode.corrupt(Corruption::Xattrs))
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ImageError> {
        if inode.file_type != FileType::Symlink {
            return Err(inode.corrupt(Corruption::Type));
        }
        // At most a block, as was checked.
        let mut target = vec![0; inode.size as usize];
        self.read_small(inode, &mut target, 0)?;
        Ok(target)
    }

    /// Checks what reading relies on.
    fn check(&self, inode: &Inode) -> Result<(), Corruption> {
        use Corruption::{Attribute, Format, OutOfBounds};
        let tail = inode.tail_offset();
        if !self.source.contains(tail, 0) {
            return Err(OutOfBounds);
        }
        if inode.attributes.mtime.nanoseconds >= 1_000_000_000 {
            return Err(Attribute);
        }
        match (inode.file_type, inode.layout) {
            (FileType::Regular, DataLayout::Plain) => {
                let stored = blocks_of(inode.size);
                if inode.size > 0 && !self.has_blocks(inode.union, stored) {
                    return Err(OutOfBounds);
                }
            }
            (FileType::Regular, DataLayout::Chunked) => {
                content::check_chunks(inode)?;
            }
            (FileType::Directory | FileType::Symlink, DataLayout::Plain) => {
                if !self.has_blocks(inode.union, blocks_of(inode.size)) {
                    return Err(OutOfBounds);
                }
            }
            (FileType::Directory | FileType::Symlink, DataLayout::Inline) => {
                let inline = inode.size % BLOCK_BYTES;
                if !self.source.contains(tail, inline)
                    || !self.has_blocks(inode.union, inode.size / BLOCK_BYTES)
                {
                    return Err(OutOfBounds);
                }
            }
            (FileType::CharDevice | FileType::BlockDevice | FileType::Fifo, DataLayout::Plain) => {}
            _ => return Err(Format),
        }
        let size_is_possible = match inode.file_type {
            FileType::Regular => i64::try_from(inode.size).is_ok(),
            FileType::Symlink => (1..BLOCK_BYTES).contains(&inode.size),
            FileType::Directory => inode.size > 0,
            _ => inode.size == 0,
        };
        if size_is_possible {
            Ok(())
        } else {
            Err(Attribute)
        }
    }

    /// Whether `count` blocks from `first` are in the image.
    fn has_blocks(&self, first: u32, count: u64) -> bool {
        u64::from(first)
            .checked_add(count)
            .is_some_and(|end| end <= u64::from(self.superblock.blocks))
    }

    /// Reads directory data or a symbolic link's target. The range is within
    /// the inode's size.
    fn read_small(&self, inode: &Inode, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let in_blocks = match inode.layout {
            DataLayout::Inline => inode.size - inode.size % BLOCK_BYTES,
            DataLayout::Plain | DataLayout::Chunked => inode.size,
        };
        let blocks_left = in_blocks.saturating_sub(offset);
        let split = usize::try_from(blocks_left).map_or(buffer.len(), |n| n.min(buffer.len()));
        let (from_blocks, inline) = buffer.split_at_mut(split);
        let start = byte_of(u64::from(inode.union)) + offset;
        self.source.read_metadata(from_blocks, start)?;
        let start = inode.tail_offset() + offset.saturating_sub(in_blocks);
        self.source.read_metadata(inline, start)
    }
}

fn parse_xattrs(bytes: &[u8]) -> Option<Vec<Xattr>> {
    let (header, mut entries) = bytes.split_at_checked(XATTR_HEADER_BYTES)?;
    // Attributes shared between inodes are never written.
    if header != [0; XATTR_HEADER_BYTES] {
        return None;
    }
    let mut found = Vec::new();
    while !entries.is_empty() {
        let name_end = XATTR_ENTRY_BYTES + usize::from(*entries.first()?);
        let index = *entries.get(1)?;
        let value_end = name_end + usize::from(u16_at(entries.get(..4)?, 2));
        let name = entries.get(XATTR_ENTRY_BYTES..name_end)?;
        let value = entries.get(name_end..value_end)?;
        found.push(Xattr::from_disk(index, name, value)?);
        entries = entries.get(value_end.next_multiple_of(4)..)?;
    }
    Some(found)
}
