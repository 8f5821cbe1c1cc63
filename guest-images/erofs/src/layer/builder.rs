//! Entries of a layer, put into a tree one after the other.

use std::collections::BTreeSet;
use std::io::{Read, Seek, Write};

use super::LayerError;
use super::content::store;
use crate::blob::BlobWriter;
use crate::path;
use crate::tar::{self, Entry, EntryKind, Recorder};
use crate::tree::{Directory, Node, NodeId, NodeKind, Tree};
use crate::xattr::{Marker, Xattr, Xattrs};
use crate::{Attributes, DeviceNumber, EntryName, Limits};

/// `PATH_MAX` less the NUL: what symlink(2) takes.
const SYMLINK_MAX: usize = 4095;

/// The largest file, holes included: ext4's. The map of larger sparse files would
/// turn kilobytes of tar into gigabytes of blob.
const FILE_MAX: u64 = 16 << 40;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// What the name of an entry asks for.
enum Purpose<'a> {
    Root,
    Create(&'a [u8]),
    Delete(&'a [u8]),
    MakeOpaque,
    Nothing,
}

/// A layer's tree under construction.
pub(super) struct Builder {
    tree: Tree,
    /// Directories without an entry of their own.
    implicit: BTreeSet<NodeId>,
    opaque: BTreeSet<NodeId>,
    /// Names to hide in lower layers. They become nodes at the end: a whiteout
    /// says nothing about its own layer, before or after it.
    whiteouts: Vec<(NodeId, Box<[u8]>)>,
    dropped_xattrs: u64,
}

impl Builder {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            tree: Tree::new(limits),
            implicit: BTreeSet::from([NodeId::ROOT]),
            opaque: BTreeSet::new(),
            whiteouts: Vec::new(),
            dropped_xattrs: 0,
        }
    }

    pub(super) fn dropped_xattrs(&self) -> u64 {
        self.dropped_xattrs
    }

    /// Adds an entry, and its content to `blob`.
    pub(super) fn add<R: Read, K: Recorder, W: Write + Seek>(
        &mut self,
        mut entry: Entry,
        tar: &mut tar::Reader<R, K>,
        blob: &mut BlobWriter<W>,
    ) -> Result<(), LayerError> {
        let path = std::mem::take(&mut entry.path);
        let components = path::components(&path).map_err(|source| LayerError::Path {
            entry: EntryName::from(&*path),
            source,
        })?;
        let (purpose, parents) = purpose(&path, &components)?;
        match purpose {
            Purpose::Nothing => Ok(()),
            Purpose::Root => self.describe_root(&path, &entry),
            Purpose::MakeOpaque => {
                let directory = self.make_parents(&path, parents)?;
                self.opaque.insert(directory);
                Ok(())
            }
            Purpose::Delete(name) => {
                let directory = self.make_parents(&path, parents)?;
                self.tree
                    .charge((size_of::<(NodeId, Box<[u8]>)>() + name.len()) as u64)?;
                self.whiteouts.push((directory, name.into()));
                Ok(())
            }
            Purpose::Create(name) => {
                let parent = self.make_parents(&path, parents)?;
                let kind = match entry.kind {
                    EntryKind::Directory => {
                        return self.create_directory(parent, name, &path, &entry);
                    }
                    EntryKind::HardLink(target) => {
                        return self.create_hard_link(parent, name, &path, &components, &target);
                    }
                    EntryKind::File { size, .. } if size > FILE_MAX => {
                        return Err(LayerError::FileTooLarge {
                            entry: EntryName::from(&*path),
                            size,
                        });
                    }
                    EntryKind::File { size, ref segments } => NodeKind::File {
                        size,
                        content: store(size, segments.as_deref(), tar, blob)?,
                    },
                    EntryKind::Symlink(ref target) => NodeKind::Symlink(symlink(&path, target)?),
                    EntryKind::CharDevice(major, minor) => {
                        NodeKind::CharDevice(device_number(&path, major, minor)?)
                    }
                    EntryKind::BlockDevice(major, minor) => {
                        NodeKind::BlockDevice(device_number(&path, major, minor)?)
                    }
                    EntryKind::Fifo => NodeKind::Fifo,
                };
                self.create_node(parent, name, &path, &entry, kind)
            }
        }
    }

    /// Turns whiteouts and marks into what lies on disk.
    pub(super) fn finish(mut self) -> Result<Tree, LayerError> {
        for (parent, name) in std::mem::take(&mut self.whiteouts) {
            match self.tree.lookup(parent, &name) {
                None => {
                    let node = self.tree.add(Node {
                        attributes: Attributes::WHITEOUT,
                        xattrs: Xattrs::default(),
                        kind: NodeKind::CharDevice(DeviceNumber::WHITEOUT),
                    })?;
                    self.tree.link(parent, &*name, node)?;
                }
                // The directory is new here: nothing of one below may show, its
                // attributes no more than what it held.
                Some(node) if self.tree.directory(node).is_some() => {
                    self.opaque.insert(node);
                    self.implicit.remove(&node);
                }
                // Anything else hides what is below by being there.
                Some(_) => {}
            }
        }
        for node in &self.opaque {
            self.tree.node_mut(*node).xattrs.mark(Marker::Opaque);
        }
        for node in &self.implicit {
            self.tree.node_mut(*node).xattrs.mark(Marker::Implicit);
        }
        Ok(self.tree)
    }

    /// Finds the directory that these components lead to. What is missing is
    /// made; what is there and no directory is an error, also a symbolic link
    /// to one: where it leads is known only when the layers are merged.
    fn make_parents(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<NodeId, LayerError> {
        let mut directory = NodeId::ROOT;
        for name in parents {
            directory = match self.tree.lookup(directory, name) {
                Some(node) if self.tree.directory(node).is_some() => node,
                Some(_) => {
                    return Err(LayerError::NotADirectory {
                        entry: path.into(),
                        component: EntryName::from(*name),
                    });
                }
                None => {
                    let node = self.tree.add(Node {
                        attributes: Attributes::UNDESCRIBED_DIRECTORY,
                        xattrs: Xattrs::default(),
                        kind: NodeKind::Directory(Directory::default()),
                    })?;
                    self.tree.link(directory, *name, node)?;
                    self.implicit.insert(node);
                    node
                }
            };
        }
        Ok(directory)
    }

    fn describe_root(&mut self, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != EntryKind::Directory {
            return Err(LayerError::Root { entry: path.into() });
        }
        self.describe(NodeId::ROOT, path, entry)
    }

    /// Makes a directory, or describes the one that is there: what is in it
    /// stays, and so do attributes that the entry does not mention, as when tar
    /// finds a directory where it is to make one.
    fn create_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), LayerError> {
        match self.tree.lookup(parent, name) {
            Some(node) if self.tree.directory(node).is_some() => self.describe(node, path, entry),
            _ => {
                let kind = NodeKind::Directory(Directory::default());
                self.create_node(parent, name, path, entry, kind)
            }
        }
    }

    /// Makes a node, in place of what had the name before.
    fn create_node(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        kind: NodeKind,
    ) -> Result<(), LayerError> {
        let node = self.tree.add(Node {
            attributes: Attributes::default(),
            xattrs: Xattrs::default(),
            kind,
        })?;
        self.describe(node, path, entry)?;
        Ok(self.tree.link(parent, name, node)?)
    }

    /// Gives a node the entry's attributes.
    fn describe(&mut self, node: NodeId, path: &[u8], entry: &Entry) -> Result<(), LayerError> {
        self.implicit.remove(&node);
        self.tree.node_mut(node).attributes = Attributes {
            permissions: entry.permissions,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
        };
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let refused = |name: &[u8], source| LayerError::Xattr {
            entry: path.into(),
            name: name.into(),
            source,
        };
        let mut kept = Vec::new();
        let mut last = &b""[..];
        for (name, value) in &entry.xattrs {
            match Xattr::from_layer(name, value) {
                Ok(Some(xattr)) => kept.push(xattr),
                Ok(None) => self.dropped_xattrs += 1,
                Err(problem) => return Err(refused(name, problem)),
            }
            last = name;
        }
        self.tree.charge(kept.iter().map(Xattr::held_bytes).sum())?;
        let xattrs = &mut self.tree.node_mut(node).xattrs;
        xattrs
            .set_all(kept)
            .map_err(|problem| refused(last, problem))
    }

    fn create_hard_link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        components: &[&[u8]],
        target: &[u8],
    ) -> Result<(), LayerError> {
        let target_components =
            path::components(target).map_err(|source| LayerError::LinkPath {
                entry: path.into(),
                target: target.into(),
                source,
            })?;
        if target_components != components {
            // First, so that a link cannot take the place of what holds it.
            self.tree.unlink(parent, name);
        }
        let node = target_components
            .iter()
            .try_fold(NodeId::ROOT, |node, name| self.tree.lookup(node, name))
            .filter(|node| self.tree.directory(*node).is_none())
            .ok_or_else(|| LayerError::LinkTarget {
                entry: path.into(),
                target: target.into(),
            })?;
        Ok(self.tree.link(parent, name, node)?)
    }
}

/// Reads the meaning of a path's last component, and returns those before it.
fn purpose<'a, 'c>(
    path: &[u8],
    components: &'c [&'a [u8]],
) -> Result<(Purpose<'a>, &'c [&'a [u8]]), LayerError> {
    let Some((name, parents)) = components.split_last() else {
        return Ok((Purpose::Root, &[]));
    };
    let misused = || LayerError::Whiteout { entry: path.into() };
    if parents.iter().any(|parent| parent.starts_with(AUFS_PREFIX)) {
        return Ok((Purpose::Nothing, parents));
    }
    if parents
        .iter()
        .any(|parent| parent.starts_with(WHITEOUT_PREFIX))
    {
        return Err(misused());
    }
    let purpose = if *name == OPAQUE_NAME {
        Purpose::MakeOpaque
    } else if name.starts_with(AUFS_PREFIX) {
        Purpose::Nothing
    } else if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(misused());
        }
        Purpose::Delete(hidden)
    } else {
        Purpose::Create(name)
    };
    Ok((purpose, parents))
}

fn symlink(path: &[u8], target: &[u8]) -> Result<Box<[u8]>, LayerError> {
    if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) {
        return Err(LayerError::Symlink { entry: path.into() });
    }
    Ok(target.into())
}

fn device_number(path: &[u8], major: u32, minor: u32) -> Result<DeviceNumber, LayerError> {
    DeviceNumber::new(major, minor).ok_or_else(|| LayerError::Device {
        entry: path.into(),
        major,
        minor,
    })
}
