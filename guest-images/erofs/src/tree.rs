//! A file tree in memory: everything but the content of files.

use std::collections::BTreeMap;

use crate::extents::Content;
use crate::xattr::{Xattr, Xattrs};
use crate::{Attributes, DeviceNumber, FileType, Limits};

/// An inode of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an inode is and holds.
#[derive(Debug)]
pub(crate) enum NodeKind {
    File { size: u64, content: Content },
    Directory(Directory),
    Symlink(Box<[u8]>),
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

/// The names in a directory, in the order of their bytes.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub entries: BTreeMap<Box<[u8]>, NodeId>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub attributes: Attributes,
    pub xattrs: Xattrs,
    pub kind: NodeKind,
}

impl Node {
    pub(crate) fn file_type(&self) -> FileType {
        match &self.kind {
            NodeKind::File { .. } => FileType::Regular,
            NodeKind::Directory(_) => FileType::Directory,
            NodeKind::Symlink(_) => FileType::Symlink,
            NodeKind::CharDevice(_) => FileType::CharDevice,
            NodeKind::BlockDevice(_) => FileType::BlockDevice,
            NodeKind::Fifo => FileType::Fifo,
        }
    }

    /// Memory that grows with what the input says, beyond the node itself.
    fn held_bytes(&self) -> u64 {
        let kind = match &self.kind {
            NodeKind::Symlink(target) => target.len() as u64,
            NodeKind::File {
                content: Content::Chunked { map, .. },
                ..
            } => size_of_val(map.runs.as_slice()) as u64,
            _ => 0,
        };
        kind + self.xattrs.iter().map(Xattr::held_bytes).sum::<u64>()
    }
}

/// A tree has more of something than the limits allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TreeFull {
    Entries(u64),
    Metadata(u64),
}

/// A tree with a root directory. Nodes that lose their last name stay in memory
/// and count, but are not part of what is written.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    names: u64,
    held_bytes: u64,
    max_entries: u64,
    max_held_bytes: u64,
}

impl Tree {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            nodes: vec![Node {
                attributes: Attributes::UNDESCRIBED_DIRECTORY,
                xattrs: Xattrs::default(),
                kind: NodeKind::Directory(Directory::default()),
            }],
            names: 0,
            held_bytes: 0,
            // Every node has had a name, so this bounds the ids too.
            max_entries: limits.max_entries.min(u64::from(u32::MAX) - 1),
            max_held_bytes: limits.max_metadata_bytes,
        }
    }

    /// Makes room for so many nodes at once: moving them as they grow in number costs as much
    /// as reading them.
    pub(crate) fn reserve(&mut self, nodes: u64) {
        let nodes = nodes.min(self.max_entries);
        self.nodes.reserve(usize::try_from(nodes).unwrap_or(0));
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Number of node ids given out.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The names in a directory; of anything else, none.
    pub(crate) fn entries(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        self.directory(id)
            .into_iter()
            .flat_map(|directory| &directory.entries)
            .map(|(name, node)| (&**name, *node))
    }

    pub(crate) fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(parent)?.entries.get(name).copied()
    }

    /// Makes a node that has no name yet.
    pub(crate) fn add(&mut self, mut node: Node) -> Result<NodeId, TreeFull> {
        node.xattrs.shrink();
        self.charge(node.held_bytes())?;
        let id = u32::try_from(self.nodes.len())
            .ok()
            .filter(|id| u64::from(*id) <= self.max_entries)
            .ok_or(TreeFull::Entries(self.max_entries))?;
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    /// Gives a node a name, in place of what had it before.
    pub(crate) fn link(
        &mut self,
        parent: NodeId,
        name: impl Into<Box<[u8]>>,
        node: NodeId,
    ) -> Result<(), TreeFull> {
        let name = name.into();
        if self.names >= self.max_entries {
            return Err(TreeFull::Entries(self.max_entries));
        }
        self.names += 1;
        self.charge(name.len() as u64)?;
        if let NodeKind::Directory(directory) = &mut self.node_mut(parent).kind {
            directory.entries.insert(name, node);
        }
        Ok(())
    }

    /// Takes a name away, and with it what is below.
    pub(crate) fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        if let NodeKind::Directory(directory) = &mut self.node_mut(parent).kind {
            directory.entries.remove(name);
        }
    }

    /// Counts bytes of attributes that a node got after it was made.
    pub(crate) fn charge(&mut self, bytes: u64) -> Result<(), TreeFull> {
        self.held_bytes = self.held_bytes.saturating_add(bytes);
        if self.held_bytes > self.max_held_bytes {
            return Err(TreeFull::Metadata(self.max_held_bytes));
        }
        Ok(())
    }
}
