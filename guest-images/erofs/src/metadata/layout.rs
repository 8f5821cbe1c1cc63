//! Where each inode and directory goes.

use super::directory::Shape;
use crate::extents::{Content, blocks_of, byte_of};
use crate::format::{BLOCK, BLOCK_BYTES, DataLayout, INODE_BYTES, SLOT_BYTES, XATTR_HEADER_BYTES};
use crate::tree::{NodeId, NodeKind, Tree};

/// Slot 0 stays unused: it would be inode number 0, which readdir(3) users take
/// for "no entry". The second one keeps inodes from straddling blocks.
const FIRST_INODE: u64 = 2 * SLOT_BYTES;

/// The tree does not fit the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayoutError {
    /// The metadata alone takes more blocks than can be addressed.
    TooLarge,
}

/// The place of one inode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub node: NodeId,
    /// The directory it was found in; for the root, the root.
    pub parent: NodeId,
    /// Where the inode is, in bytes from slot 0.
    pub offset: u64,
    pub layout: DataLayout,
    /// The content: of directories and symbolic links what is stored here.
    pub size: u64,
    /// The first block that holds some of it, counted from the first one after
    /// the inodes. Only for directories and symbolic links that need blocks.
    pub block: u32,
}

impl Place {
    /// Blocks outside the inode.
    pub(crate) fn blocks(&self) -> u64 {
        match self.layout {
            DataLayout::Plain => blocks_of(self.size),
            DataLayout::Inline => self.size / BLOCK_BYTES,
            DataLayout::Chunked => 0,
        }
    }

    /// Bytes right after the inode.
    fn inline_bytes(&self) -> usize {
        match self.layout {
            DataLayout::Inline => (self.size % BLOCK_BYTES) as usize,
            _ => 0,
        }
    }
}

/// The places of all inodes of a tree.
pub(crate) struct Layout {
    /// In the order of their offsets. The children of a directory follow each
    /// other, so that listing it with attributes reads few blocks.
    pub places: Vec<Place>,
    /// By [`NodeId`]: the inode's slot, 0 for a node that has no name.
    pub nids: Vec<u64>,
    /// By [`NodeId`]: names of a file, or 2 and the subdirectories of a
    /// directory.
    pub links: Vec<u32>,
    /// Blocks of the inodes.
    pub inode_blocks: u64,
    /// Blocks of directories and long symbolic links, after those.
    pub data_blocks: u64,
    /// Whether any file is sparse.
    pub chunked: bool,
}

impl Layout {
    pub(crate) fn new(tree: &Tree) -> Result<Self, LayoutError> {
        let mut layout = Self {
            places: Vec::with_capacity(tree.len()),
            nids: vec![0; tree.len()],
            links: vec![0; tree.len()],
            inode_blocks: 0,
            data_blocks: 0,
            chunked: false,
        };
        let mut end = layout.place(tree, NodeId::ROOT, NodeId::ROOT, FIRST_INODE)?;
        layout.links[NodeId::ROOT.index()] = 2;
        // Not recursive: the depth is the input's choice.
        let mut directories = vec![NodeId::ROOT];
        while let Some(parent) = directories.pop() {
            let first_new = directories.len();
            for (_, node) in tree.entries(parent) {
                if layout.nids[node.index()] == 0 {
                    end = layout.place(tree, node, parent, end)?;
                }
                if tree.directory(node).is_some() {
                    layout.links[node.index()] = 2;
                    layout.links[parent.index()] += 1;
                    directories.push(node);
                } else {
                    layout.links[node.index()] += 1;
                }
            }
            // The last is taken first, so that they go in order of their names.
            directories[first_new..].reverse();
        }
        // fsck.erofs 1.5 looks for an attribute header after every inode, also
        // where there is none, so the image must not end before it would.
        layout.inode_blocks = blocks_of(end + XATTR_HEADER_BYTES as u64);
        if layout.blocks() >= u64::from(u32::MAX) {
            return Err(LayoutError::TooLarge);
        }
        Ok(layout)
    }

    /// Blocks of all metadata.
    pub(crate) fn blocks(&self) -> u64 {
        self.inode_blocks + self.data_blocks
    }

    /// Places an inode at or after `end` and returns where it ends.
    fn place(
        &mut self,
        tree: &Tree,
        node: NodeId,
        parent: NodeId,
        end: u64,
    ) -> Result<u64, LayoutError> {
        let content = tree.node(node);
        let head = INODE_BYTES + content.xattrs.disk_bytes();
        let mut place = Place {
            node,
            parent,
            offset: end.next_multiple_of(SLOT_BYTES),
            layout: DataLayout::Plain,
            size: 0,
            block: 0,
        };
        let mut table_bytes = 0;
        match &content.kind {
            NodeKind::Directory(directory) => {
                let shape = Shape::of(name_lengths(directory.entries.keys()));
                place.size = byte_of(shape.full_blocks) + shape.tail_bytes as u64;
                place.layout = inline_if_it_fits(head, shape.tail_bytes);
            }
            NodeKind::Symlink(target) => {
                place.size = target.len() as u64;
                place.layout = inline_if_it_fits(head, target.len());
            }
            NodeKind::File { size, content } => {
                place.size = *size;
                if let Content::Chunked { map, .. } = content {
                    self.chunked = true;
                    place.layout = DataLayout::Chunked;
                    table_bytes = map.table_bytes();
                }
            }
            NodeKind::CharDevice(_) | NodeKind::BlockDevice(_) | NodeKind::Fifo => {}
        }

        // What lies inline must not cross a block boundary, or the kernel calls
        // it corrupted; an inode that does costs it a copy.
        let whole = match place.layout {
            DataLayout::Inline => head + place.inline_bytes(),
            DataLayout::Plain | DataLayout::Chunked => INODE_BYTES,
        };
        let room = BLOCK_BYTES - place.offset % BLOCK_BYTES;
        if whole as u64 > room {
            place.offset += room;
        }

        if matches!(content.kind, NodeKind::Directory(_) | NodeKind::Symlink(_)) {
            let blocks = place.blocks();
            // Checked at the end as a whole; until then only as large as memory.
            place.block = u32::try_from(self.data_blocks).map_err(|_| LayoutError::TooLarge)?;
            self.data_blocks += blocks;
        }
        // Far below 2⁶⁴: tables are bounded by the data they save.
        let end = (place.offset + (head + place.inline_bytes()) as u64)
            .checked_add(table_bytes)
            .filter(|end| blocks_of(*end) < u64::from(u32::MAX))
            .ok_or(LayoutError::TooLarge)?;
        self.nids[node.index()] = place.offset / SLOT_BYTES;
        self.places.push(place);
        Ok(end)
    }
}

/// The kernel reads inline what does not fill a block from right after the
/// inode. It can be there only if inode, attributes and tail fit one block.
fn inline_if_it_fits(head: usize, content: usize) -> DataLayout {
    // A tail of a whole block is no tail: the kernel takes the last block,
    // whatever its fill, for the inline one (`erofs_map_blocks_flatmode`).
    if content < BLOCK && head + content <= BLOCK {
        DataLayout::Inline
    } else {
        DataLayout::Plain
    }
}

/// The lengths of a directory's names in sorted order, "." and ".." included.
fn name_lengths<'a>(names: impl Iterator<Item = &'a Box<[u8]>>) -> impl Iterator<Item = usize> {
    with_dots(names.map(|name| (&**name, ()))).map(|(name, _)| name.len())
}

/// Inserts "." and ".." where they sort; names may begin with `!` or `-`.
pub(crate) fn with_dots<'a, T: Default>(
    entries: impl Iterator<Item = (&'a [u8], T)>,
) -> impl Iterator<Item = (&'a [u8], T)> {
    let mut entries = entries.peekable();
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    std::iter::from_fn(move || {
        let dot_first = match (dots.peek(), entries.peek()) {
            (Some(dot), Some((name, _))) => dot < name,
            (dot, _) => dot.is_some(),
        };
        if dot_first {
            dots.next().map(|dot| (dot, T::default()))
        } else {
            entries.next()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Directory, Node};
    use crate::xattr::{Xattr, Xattrs};
    use crate::{Attributes, Limits};

    fn node(kind: NodeKind, xattr_bytes: usize) -> Node {
        let mut xattrs = Xattrs::default();
        if xattr_bytes > 0 {
            let xattr = Xattr::new(b"user.x", &vec![1; xattr_bytes]).unwrap();
            xattrs.set_all(xattr).unwrap();
        }
        Node {
            attributes: Attributes::UNDESCRIBED_DIRECTORY,
            xattrs,
            kind,
        }
    }

    #[test]
    fn dots_go_where_their_bytes_say() {
        let names: [&[u8]; 4] = [b"!", b"-", b".a", b"a"];
        let all: Vec<_> = with_dots(names.into_iter().map(|name| (name, 1))).collect();
        let expected: [(&[u8], i32); 6] = [
            (b"!", 1),
            (b"-", 1),
            (b".", 0),
            (b"..", 0),
            (b".a", 1),
            (b"a", 1),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn nothing_inline_and_no_inode_crosses_a_block() {
        let mut tree = Tree::new(&Limits::default());
        for (index, length) in (0..2000_usize).map(|n| (n, n * 37 % 4095 + 1)) {
            let kind = NodeKind::Symlink(vec![b'x'; length].into());
            let id = tree.add(node(kind, index * 131 % 5000)).unwrap();
            tree.link(NodeId::ROOT, format!("{index}").as_bytes(), id)
                .unwrap();
        }
        let layout = Layout::new(&tree).unwrap();
        let mut end = 0;
        for place in &layout.places {
            assert!(place.offset >= end, "inodes overlap");
            assert_eq!(place.offset % SLOT_BYTES, 0);
            let head = (INODE_BYTES + tree.node(place.node).xattrs.disk_bytes()) as u64;
            let in_block = place.offset % BLOCK_BYTES;
            assert!(in_block + INODE_BYTES as u64 <= BLOCK_BYTES);
            if place.layout == DataLayout::Inline {
                let tail = (place.offset + head) % BLOCK_BYTES;
                assert!(tail + place.inline_bytes() as u64 <= BLOCK_BYTES);
            }
            end = place.offset + head + place.inline_bytes() as u64;
        }
        let placed: u64 = layout.places.iter().map(Place::blocks).sum();
        assert_eq!(placed, layout.data_blocks);
    }

    #[test]
    fn links_count_names_and_subdirectories() {
        let mut tree = Tree::new(&Limits::default());
        let directory = || NodeKind::Directory(Directory::default());
        let a = tree.add(node(directory(), 0)).unwrap();
        let b = tree.add(node(directory(), 0)).unwrap();
        let file = tree.add(node(NodeKind::Fifo, 0)).unwrap();
        let lost = tree.add(node(NodeKind::Fifo, 0)).unwrap();
        tree.link(NodeId::ROOT, *b"a", a).unwrap();
        tree.link(a, *b"b", b).unwrap();
        tree.link(a, *b"one", file).unwrap();
        tree.link(b, *b"two", file).unwrap();
        tree.link(b, *b"two again", lost).unwrap();
        tree.unlink(b, b"two again");
        let layout = Layout::new(&tree).unwrap();
        let links = |id: NodeId| layout.links[id.index()];
        assert_eq!([links(NodeId::ROOT), links(a), links(b)], [3, 3, 2]);
        assert_eq!(links(file), 2);
        assert_eq!(layout.nids[lost.index()], 0);
        assert_eq!(layout.places.len(), 4);
    }

    #[test]
    fn depth_is_not_bounded_by_the_stack() {
        let mut tree = Tree::new(&Limits::default());
        let mut parent = NodeId::ROOT;
        for _ in 0..200_000 {
            let id = tree
                .add(node(NodeKind::Directory(Directory::default()), 0))
                .unwrap();
            tree.link(parent, *b"d", id).unwrap();
            parent = id;
        }
        assert_eq!(Layout::new(&tree).unwrap().places.len(), 200_001);
    }
}
