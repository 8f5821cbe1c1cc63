//! Layers become an image.

use std::collections::{HashMap, HashSet};
use std::io::{self, Seek, Write};

use crate::blob::{BlobError, BlobWriter};
use crate::extents::{LayerIndex, blocks_of, byte_of};
use crate::format::INODE_BYTES;
use crate::image::{Corruption, Image, ImageError, Inode, ReadAt};
use crate::metadata::{self, Layout, Target};
use crate::tree::{Directory, Node, NodeId, NodeKind, Tree, TreeFull};
use crate::xattr::{Marker, Xattrs};
use crate::{DeviceNumber, FileType, Limits};

/// What was written, and where the layers go behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeSummary {
    /// Length of the metadata, a multiple of
    /// [`BLOCK_BYTES`](crate::BLOCK_BYTES). The layers follow it on the disk, in
    /// the order they were given, without gaps.
    pub metadata_bytes: u64,
    /// Where each layer's blob begins on the disk.
    pub layer_offsets: Vec<u64>,
    /// Length of the disk.
    pub disk_bytes: u64,
    /// Inodes in the image.
    pub inodes: u64,
}

/// Why layers did not become an image.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A layer's blob could not be read.
    #[error("layer {layer} of the image, counted from the lowest, is unusable")]
    Layer {
        /// Which one, from 0.
        layer: usize,
        /// Why.
        source: ImageError,
    },
    /// More names than [`Limits::max_entries`].
    #[error("the layers have more than the {limit} entries allowed in an image")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// More names and attributes than [`Limits::max_metadata_bytes`].
    #[error("the layers' names, links and attributes exceed the {limit} bytes allowed in an image")]
    TooMuchMetadata {
        /// The limit.
        limit: u64,
    },
    /// A metadata blob larger than [`Limits::max_blob_bytes`].
    #[error("the image's metadata exceeds the {limit} bytes allowed")]
    MetadataTooLarge {
        /// The limit.
        limit: u64,
    },
    /// More blocks than EROFS can address.
    #[error("the image's layers exceed the 16 TiB that EROFS can address")]
    DiskTooLarge,
    /// The output failed.
    #[error("writing the image's metadata failed")]
    Write(#[source] io::Error),
}

impl From<TreeFull> for MergeError {
    fn from(full: TreeFull) -> Self {
        match full {
            TreeFull::Entries(limit) => Self::TooManyEntries { limit },
            TreeFull::Metadata(limit) => Self::TooMuchMetadata { limit },
        }
    }
}

impl From<BlobError> for MergeError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::TooLarge(limit) => Self::MetadataTooLarge { limit },
            BlobError::Write(source) => Self::Write(source),
        }
    }
}

/// Merges layers, the lowest first, and writes the metadata of the image to
/// `out`, which must be empty. See [`Merge`].
pub fn write<R: ReadAt, W: Write + Seek>(
    layers: &[Image<R>],
    out: W,
    limits: &Limits,
) -> Result<MergeSummary, MergeError> {
    let mut merge = Merge::new(limits);
    for image in layers {
        merge.add(image)?;
    }
    merge.write(out)
}

/// Layers that become an image, one after another.
///
/// The result is the beginning of a disk. The blobs of the layers follow it, and
/// its files are where those already have them. Merging is that of the OCI image
/// specification: a directory over a directory keeps what is in it and takes the
/// attributes of the upper one, anything else replaces what is below with all it
/// holds, whiteouts and opaque directories hide and do not appear themselves.
/// Names meet names only: no symbolic link is followed.
pub struct Merge {
    tree: Tree,
    /// The length of each layer's blob.
    layer_bytes: Vec<u64>,
    max_blob_bytes: u64,
}

impl Merge {
    /// Of no layers yet.
    pub fn new(limits: &Limits) -> Self {
        Self {
            tree: Tree::new(limits),
            layer_bytes: Vec::new(),
            max_blob_bytes: limits.max_blob_bytes,
        }
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.layer_bytes.len()
    }

    /// Puts a layer over what is there. After an error it is of no use.
    pub fn add<R: ReadAt>(&mut self, image: &Image<R>) -> Result<(), MergeError> {
        // As many as the layer says, and has room for; and some for a small one above it.
        let inodes = image.inodes().min(image.bytes() / INODE_BYTES as u64);
        self.tree.reserve(inodes + inodes / 8);
        let layer = Layer {
            image,
            index: LayerIndex::try_from(self.layers()).map_err(|_| MergeError::DiskTooLarge)?,
        };
        self.layer_bytes.push(image.bytes());
        layer.apply(&mut self.tree)
    }

    /// Writes the metadata of the image to `out`, which must be empty.
    pub fn write<W: Write + Seek>(self, out: W) -> Result<MergeSummary, MergeError> {
        let layout = Layout::new(&self.tree).map_err(|_| MergeError::DiskTooLarge)?;
        let metadata_blocks = 1 + layout.blocks();
        let mut next = metadata_blocks;
        let mut layer_blocks = Vec::with_capacity(self.layers());
        for bytes in &self.layer_bytes {
            layer_blocks.push(u32::try_from(next).map_err(|_| MergeError::DiskTooLarge)?);
            next += blocks_of(*bytes);
        }
        let target = Target {
            layer_blocks: &layer_blocks,
            disk_blocks: u32::try_from(next).map_err(|_| MergeError::DiskTooLarge)?,
        };
        let blob = BlobWriter::new(out, self.max_blob_bytes);
        metadata::write(&self.tree, &layout, &target, blob)?;
        Ok(MergeSummary {
            metadata_bytes: byte_of(metadata_blocks),
            layer_offsets: layer_blocks
                .iter()
                .map(|block| byte_of(u64::from(*block)))
                .collect(),
            disk_bytes: byte_of(next),
            inodes: layout.places.len() as u64,
        })
    }
}

struct Layer<'a, R> {
    image: &'a Image<R>,
    index: LayerIndex,
}

impl<R: ReadAt> Layer<'_, R> {
    /// Puts the layer over what is in the tree.
    fn apply(&self, tree: &mut Tree) -> Result<(), MergeError> {
        let root = self.try_read(self.image.root())?;
        let mut description = self.describe(&root)?;
        if description.xattrs.unmark(Marker::Opaque) {
            tree.node_mut(NodeId::ROOT).kind = NodeKind::Directory(Directory::default());
        }
        self.set_attributes(tree, NodeId::ROOT, description)?;

        let mut seen = HashSet::from([root.nid()]);
        // Files with several names; the upper layer's are never one with a
        // lower layer's.
        let mut linked: HashMap<u64, NodeId> = HashMap::new();
        // Not recursive: the depth is the input's choice.
        let mut directories = vec![(NodeId::ROOT, root)];
        while let Some((parent, directory)) = directories.pop() {
            for entry in self.try_read(self.image.entries(&directory))? {
                let inode = self.try_read(self.image.inode(entry.nid))?;
                if inode.file_type() != entry.file_type {
                    return Err(self.corrupt(&inode, Corruption::Type));
                }
                if inode.file_type() == FileType::Directory {
                    if !seen.insert(inode.nid()) {
                        return Err(self.corrupt(&inode, Corruption::DirectoryTwice));
                    }
                    let node = self.put_directory(tree, parent, entry.name, &inode)?;
                    directories.push((node, inode));
                } else if inode.device() == Some(DeviceNumber::WHITEOUT)
                    && inode.file_type() == FileType::CharDevice
                {
                    tree.unlink(parent, &entry.name);
                } else {
                    let node = match linked.get(&inode.nid()) {
                        Some(node) => *node,
                        None => {
                            let node = tree.add(self.describe(&inode)?)?;
                            if inode.links() > 1 {
                                linked.insert(inode.nid(), node);
                            }
                            node
                        }
                    };
                    tree.link(parent, entry.name, node)?;
                }
            }
        }
        Ok(())
    }

    fn put_directory(
        &self,
        tree: &mut Tree,
        parent: NodeId,
        name: Box<[u8]>,
        inode: &Inode,
    ) -> Result<NodeId, MergeError> {
        let mut description = self.describe(inode)?;
        let opaque = description.xattrs.unmark(Marker::Opaque);
        let below = tree
            .lookup(parent, &name)
            .filter(|node| tree.directory(*node).is_some());
        let Some(node) = below else {
            description.xattrs.unmark(Marker::Implicit);
            let node = tree.add(description)?;
            tree.link(parent, name, node)?;
            return Ok(node);
        };
        // One directory has one name, so this one can be emptied and go on.
        if opaque {
            tree.node_mut(node).kind = NodeKind::Directory(Directory::default());
        }
        self.set_attributes(tree, node, description)?;
        Ok(node)
    }

    /// Gives a directory the attributes of the upper one, unless that has none
    /// of its own.
    fn set_attributes(
        &self,
        tree: &mut Tree,
        node: NodeId,
        mut description: Node,
    ) -> Result<(), MergeError> {
        if !description.xattrs.unmark(Marker::Implicit) {
            let held = description.xattrs.iter().map(crate::Xattr::held_bytes);
            tree.charge(held.sum())?;
            let lower = tree.node_mut(node);
            lower.attributes = description.attributes;
            lower.xattrs = description.xattrs;
        }
        Ok(())
    }

    /// Reads what the tree holds of an inode; of a directory, no names.
    fn describe(&self, inode: &Inode) -> Result<Node, MergeError> {
        let device = || {
            inode
                .device()
                .ok_or_else(|| self.corrupt(inode, Corruption::Type))
        };
        let kind = match inode.file_type() {
            FileType::Regular => NodeKind::File {
                size: inode.size(),
                content: self.try_read(self.image.content(inode, self.index))?,
            },
            FileType::Directory => NodeKind::Directory(Directory::default()),
            FileType::Symlink => {
                NodeKind::Symlink(self.try_read(self.image.read_link(inode))?.into())
            }
            FileType::CharDevice => NodeKind::CharDevice(device()?),
            FileType::BlockDevice => NodeKind::BlockDevice(device()?),
            FileType::Fifo => NodeKind::Fifo,
        };
        Ok(Node {
            attributes: *inode.attributes(),
            xattrs: Xattrs::from_disk(self.try_read(self.image.xattrs(inode))?),
            kind,
        })
    }

    fn try_read<T>(&self, result: Result<T, ImageError>) -> Result<T, MergeError> {
        result.map_err(|source| MergeError::Layer {
            layer: self.index as usize,
            source,
        })
    }

    fn corrupt(&self, inode: &Inode, what: Corruption) -> MergeError {
        MergeError::Layer {
            layer: self.index as usize,
            source: ImageError::Corrupt {
                nid: inode.nid(),
                what,
            },
        }
    }
}
