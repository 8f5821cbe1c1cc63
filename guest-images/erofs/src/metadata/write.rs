//! Writing inodes, directories and the superblock.

use std::io::{Seek, Write};

use super::directory::{Blocks, Dirent};
use super::layout::{Layout, Place, with_dots};
use crate::FileType;
use crate::blob::{BlobError, BlobWriter};
use crate::extents::{Content, byte_of};
use crate::format::{BLOCK, BLOCK_BYTES, DataLayout, RawInode, Superblock};
use crate::tree::{Node, NodeKind, Tree};

/// What the metadata is written for.
pub(crate) struct Target<'a> {
    /// Where each layer's block 0 is on the disk.
    pub layer_blocks: &'a [u32],
    /// Blocks of the whole disk.
    pub disk_blocks: u32,
}

/// Writes all metadata at the current, block-aligned position of `out`, then
/// the superblock. Blocks of files are named relative to the layers in `target`.
pub(crate) fn write<W: Write + Seek>(
    tree: &Tree,
    layout: &Layout,
    target: &Target<'_>,
    mut out: BlobWriter<W>,
) -> Result<(), BlobError> {
    let meta_block = out.next_block();
    out.reserve(byte_of(layout.blocks()))?;
    let data_block = meta_block + layout.inode_blocks as u32;
    let mut writer = Writer {
        tree,
        layout,
        target,
        data_block,
        sink: Sink {
            out: &mut out,
            written: 0,
            checksum: 0,
        },
        scratch: Vec::new(),
    };
    for (serial, place) in (1..).zip(&layout.places) {
        writer.inode(serial, place)?;
    }
    writer.sink.pad_to(byte_of(layout.inode_blocks))?;
    for place in &layout.places {
        writer.blocks(place)?;
    }
    writer.sink.pad_to(byte_of(layout.blocks()))?;

    let inodes = layout.places.len() as u64;
    let checksum = writer.sink.checksum;
    let superblock = Superblock {
        blocks: target.disk_blocks,
        meta_block,
        // The root is the first inode.
        root_nid: layout.nids[0] as u16,
        inodes,
        chunked: layout.chunked,
        uuid: uuid([checksum, inodes as u32, meta_block, target.disk_blocks]),
    };
    out.finish(&superblock.encode())
}

/// A version 8 UUID (RFC 9562, section 5.8) made of what tells one file system
/// from another. It is a label, no proof: whoever wants a collision finds one.
fn uuid(parts: [u32; 4]) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (at, part) in uuid.chunks_exact_mut(4).zip(parts) {
        at.copy_from_slice(&part.to_be_bytes());
    }
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// Counts and sums what is written.
struct Sink<'a, W> {
    out: &'a mut BlobWriter<W>,
    written: u64,
    /// CRC-32C of everything but padding.
    checksum: u32,
}

impl<W: Write + Seek> Sink<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.written += bytes.len() as u64;
        self.out.write(bytes)
    }

    /// Zeros up to this many bytes. They say nothing, so they are not summed.
    fn pad_to(&mut self, offset: u64) -> Result<(), BlobError> {
        debug_assert!(self.written <= offset);
        let missing = offset - self.written;
        self.written = offset;
        self.out.zeros(missing)
    }
}

struct Writer<'a, 'o, W> {
    tree: &'a Tree,
    layout: &'a Layout,
    target: &'a Target<'a>,
    /// The first block after the inodes.
    data_block: u32,
    sink: Sink<'o, W>,
    scratch: Vec<u8>,
}

impl<W: Write + Seek> Writer<'_, '_, W> {
    /// Writes an inode and everything right after it.
    fn inode(&mut self, serial: u32, place: &Place) -> Result<(), BlobError> {
        let node = self.tree.node(place.node);
        let raw = RawInode {
            layout: place.layout,
            xattr_words: node.xattrs.word_count(),
            mode: node.file_type().mode_bits() | node.attributes.permissions,
            size: place.size,
            union: self.union(place, node),
            serial,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime_seconds: node.attributes.mtime.seconds,
            mtime_nanoseconds: node.attributes.mtime.nanoseconds,
            links: self.layout.links[place.node.index()],
        };
        self.sink.pad_to(place.offset)?;
        self.sink.put(&raw.encode())?;
        self.scratch.clear();
        node.xattrs.encode(&mut self.scratch);
        self.sink.put(&self.scratch)?;
        match &node.kind {
            NodeKind::Symlink(target) if place.layout == DataLayout::Inline => {
                self.sink.put(target)
            }
            NodeKind::Directory(_) if place.layout == DataLayout::Inline => {
                self.directory(place, Part::Last)
            }
            NodeKind::File {
                content: Content::Chunked { layer, map },
                ..
            } => {
                let base = self.layer_block(*layer);
                map.entries(base, |entry| self.sink.put(&entry.to_le_bytes()))
            }
            _ => Ok(()),
        }
    }

    /// The inode's `i_u`.
    fn union(&self, place: &Place, node: &Node) -> u32 {
        match &node.kind {
            NodeKind::File { content, .. } => match content {
                Content::Empty => 0,
                Content::Flat { layer, block } => self.layer_block(*layer) + block,
                // The low half is the format, of which only the size is used.
                Content::Chunked { map, .. } => map.bits,
            },
            NodeKind::Directory(_) | NodeKind::Symlink(_) if place.blocks() > 0 => {
                self.data_block + place.block
            }
            NodeKind::CharDevice(number) | NodeKind::BlockDevice(number) => number.encode(),
            NodeKind::Directory(_) | NodeKind::Symlink(_) | NodeKind::Fifo => 0,
        }
    }

    fn layer_block(&self, layer: u32) -> u32 {
        self.target.layer_blocks[layer as usize]
    }

    /// Writes what a directory or symbolic link has outside its inode.
    fn blocks(&mut self, place: &Place) -> Result<(), BlobError> {
        match &self.tree.node(place.node).kind {
            NodeKind::Symlink(target) if place.layout == DataLayout::Plain => {
                self.sink.put(target)?;
            }
            NodeKind::Directory(_) if place.blocks() > 0 => {
                let part = match place.layout {
                    DataLayout::Plain => Part::All,
                    DataLayout::Inline | DataLayout::Chunked => Part::AllButLast,
                };
                self.directory(place, part)?;
            }
            _ => return Ok(()),
        }
        self.sink
            .pad_to(self.sink.written.next_multiple_of(BLOCK_BYTES))
    }

    fn directory(&mut self, place: &Place, part: Part) -> Result<(), BlobError> {
        let nid = |node: crate::tree::NodeId| self.layout.nids[node.index()];
        let entries = self.tree.entries(place.node);
        let entries = with_dots(entries.map(|(name, node)| (name, Some(node))));
        let mut blocks = Blocks::new(entries.map(|(name, node)| match node {
            Some(node) => Dirent {
                name,
                nid: nid(node),
                file_type: self.tree.node(node).file_type(),
            },
            None => Dirent {
                name,
                nid: nid(if name == b"." {
                    place.node
                } else {
                    place.parent
                }),
                file_type: FileType::Directory,
            },
        }));
        let last = place.size.div_ceil(BLOCK as u64) - 1;
        for index in 0..=last {
            if !blocks.next_into(&mut self.scratch) {
                break;
            }
            if part.contains(index == last) {
                self.sink.put(&self.scratch)?;
            }
        }
        Ok(())
    }
}

/// Which blocks of a directory to write.
#[derive(Clone, Copy)]
enum Part {
    All,
    AllButLast,
    Last,
}

impl Part {
    fn contains(self, is_last: bool) -> bool {
        match self {
            Self::All => true,
            Self::AllButLast => !is_last,
            Self::Last => is_last,
        }
    }
}
