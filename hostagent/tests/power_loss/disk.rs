//! What a disk holds after a power loss, as far as POSIX promises: what was synced. It
//! need not hold anything else, and may hold any part of it.
//!
//! A file's content is on disk when the file was synced after it was written. A name is
//! on disk when its directory was synced; a rename, when the directory it leads to was, and
//! all of it or nothing. File systems promise more (ext4 writes all names in order), but
//! not the same.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::tracer::Change;

/// A file or a directory, whatever its name is.
type Node = usize;
/// The directory at which all begins.
const ROOT: Node = 0;
/// A write is torn at multiples of this.
const SECTOR: usize = 4096;

/// A name in a directory.
type Name = (Node, OsString);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    Link(Node, Name),
    Move(Node, Name),
    Unlink(Node, Name),
    Write(Node, u64, Vec<u8>),
    Resize(Node, u64),
}

#[derive(Debug)]
struct Logged {
    operation: Operation,
    /// When it was done.
    time: usize,
    /// When it was on disk for certain.
    durable: Option<usize>,
}

/// What is lost of what need not be on disk.
#[derive(Debug, Clone, Copy)]
pub enum Loss {
    /// All.
    Everything,
    /// What was written to files; not their names.
    Content,
    /// Names; not what was written to files.
    Names,
    /// A part, chosen by this number.
    Some(u64),
}

/// Directories and files.
#[derive(Debug, Default, Clone, Hash)]
pub struct Tree {
    directories: BTreeMap<Node, BTreeMap<OsString, Node>>,
    files: BTreeMap<Node, Vec<u8>>,
}

/// A disk that remembers what was done to it.
#[derive(Debug, Default)]
pub struct Disk {
    log: Vec<Logged>,
    /// How many events there were.
    now: usize,
    /// As programs see it.
    seen: Tree,
    nodes: usize,
    /// What an inode is.
    inodes: HashMap<u64, Node>,
}

impl Disk {
    /// With an empty directory, which has this inode.
    pub fn new(root: u64) -> Self {
        Self {
            seen: Tree {
                directories: BTreeMap::from([(ROOT, BTreeMap::new())]),
                files: BTreeMap::new(),
            },
            nodes: 1,
            inodes: HashMap::from([(root, ROOT)]),
            ..Self::default()
        }
    }

    /// How many events there were.
    pub fn now(&self) -> usize {
        self.now
    }

    /// Something was done to the paths below the root, begun at the time `begun`.
    pub fn change(&mut self, change: &Change, made: Option<u64>, begun: usize, root: &Path) {
        let relative = |path: &Path| path.strip_prefix(root).unwrap().to_owned();
        match change {
            Change::Create { path, truncates } => {
                let node = self.create(&relative(path), made.unwrap());
                if *truncates {
                    self.log(Operation::Resize(node, 0));
                }
            }
            Change::MakeDirectory { path } => {
                let name = self.name(&relative(path));
                let node = self.node(made.unwrap());
                self.seen.directories.insert(node, BTreeMap::new());
                self.log(Operation::Link(node, name));
            }
            Change::Rename { from, to } => {
                let node = self.find(&relative(from)).unwrap();
                let name = self.name(&relative(to));
                self.log(Operation::Move(node, name));
            }
            Change::Remove { path } => {
                let path = relative(path);
                // Of two threads that make and remove the same lock, the one that was later
                // may be heard of first: then it is gone already.
                if let Some(node) = self.find(&path) {
                    let name = self.name(&path);
                    self.log(Operation::Unlink(node, name));
                }
            }
            Change::Write {
                inode,
                offset,
                bytes,
            } => self.log(Operation::Write(self.inodes[inode], *offset, bytes.clone())),
            Change::Resize { inode, length } => {
                self.log(Operation::Resize(self.inodes[inode], *length));
            }
            Change::Sync { inode } => self.sync(Some(self.inodes[inode]), begun),
            Change::SyncAll => self.sync(None, begun),
        }
        self.now += 1;
    }

    fn create(&mut self, path: &Path, inode: u64) -> Node {
        if let (Some(there), Some(known)) = (self.find(path), self.inodes.get(&inode))
            && there == *known
        {
            return there;
        }
        let name = self.name(path);
        let node = self.node(inode);
        self.seen.files.insert(node, Vec::new());
        self.log(Operation::Link(node, name));
        node
    }

    fn node(&mut self, inode: u64) -> Node {
        let node = self.nodes;
        self.nodes += 1;
        self.inodes.insert(inode, node);
        node
    }

    fn find(&self, path: &Path) -> Option<Node> {
        path.iter().try_fold(ROOT, |directory, name| {
            self.seen.directories.get(&directory)?.get(name).copied()
        })
    }

    fn name(&self, path: &Path) -> Name {
        let directory = self.find(path.parent().unwrap()).unwrap();
        (directory, path.file_name().unwrap().to_owned())
    }

    fn log(&mut self, operation: Operation) {
        self.seen.apply(&operation);
        self.log.push(Logged {
            operation,
            time: self.now,
            durable: None,
        });
    }

    /// What was done to this file or directory before `begun` is on disk now; all that was
    /// done then, if it is none.
    fn sync(&mut self, synced: Option<Node>, begun: usize) {
        let now = self.now;
        for logged in &mut self.log {
            let node = match &logged.operation {
                Operation::Link(_, name)
                | Operation::Move(_, name)
                | Operation::Unlink(_, name) => name.0,
                Operation::Write(node, ..) | Operation::Resize(node, _) => *node,
            };
            if logged.time < begun && synced.is_none_or(|synced| synced == node) {
                logged.durable.get_or_insert(now);
            }
        }
    }

    /// What is on disk when the power fails after so many events.
    pub fn after_loss(&self, time: usize, loss: Loss) -> Tree {
        let mut tree = Tree {
            directories: BTreeMap::from([(ROOT, BTreeMap::new())]),
            files: BTreeMap::new(),
        };
        for node in 0..self.nodes {
            match self.seen.files.contains_key(&node) {
                true => drop(tree.files.insert(node, Vec::new())),
                false => drop(tree.directories.insert(node, BTreeMap::new())),
            }
        }
        let mut dice = Dice::new(loss, time);
        for logged in self.log.iter().take_while(|logged| logged.time < time) {
            if logged.durable.is_some_and(|durable| durable < time) {
                tree.apply(&logged.operation);
            } else if let Some(kept) = dice.kept(loss, &logged.operation) {
                tree.apply(&kept);
            }
        }
        tree.forget_unreachable();
        tree
    }
}

/// What of an operation is kept that need not be.
struct Dice(u64);

impl Dice {
    fn new(loss: Loss, time: usize) -> Self {
        let seed = match loss {
            Loss::Some(seed) => seed,
            _ => 0,
        };
        Self((time as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 17) | 1)
    }

    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % sides
    }

    fn kept(&mut self, loss: Loss, operation: &Operation) -> Option<Operation> {
        let is_content = matches!(operation, Operation::Write(..) | Operation::Resize(..));
        let keeps = match loss {
            Loss::Everything => false,
            Loss::Content => !is_content,
            Loss::Names => is_content,
            Loss::Some(_) => self.throw(2) == 0,
        };
        let mut kept = keeps.then(|| operation.clone())?;
        if let (Loss::Some(_), Operation::Write(_, _, bytes)) = (loss, &mut kept) {
            let sectors = bytes.len().div_ceil(SECTOR);
            bytes.truncate(self.throw(sectors + 1) * SECTOR);
        }
        Some(kept)
    }
}

impl Tree {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Link(node, name) => self.link(*node, name),
            Operation::Move(node, name) => {
                for entries in self.directories.values_mut() {
                    entries.retain(|_, entry| entry != node);
                }
                self.link(*node, name);
            }
            Operation::Unlink(node, (directory, name)) => {
                let entries = self.directories.get_mut(directory).unwrap();
                if entries.get(name) == Some(node) {
                    entries.remove(name);
                }
            }
            Operation::Write(node, offset, bytes) => {
                let content = self.files.get_mut(node).unwrap();
                let offset = *offset as usize;
                let end = offset + bytes.len();
                content.resize(content.len().max(end), 0);
                content[offset..end].copy_from_slice(bytes);
            }
            Operation::Resize(node, length) => {
                self.files
                    .get_mut(node)
                    .unwrap()
                    .resize(*length as usize, 0);
            }
        }
    }

    fn link(&mut self, node: Node, (directory, name): &Name) {
        let entries = self.directories.get_mut(directory).unwrap();
        entries.insert(name.clone(), node);
    }

    fn forget_unreachable(&mut self) {
        let mut reached = vec![ROOT];
        let mut next = 0;
        while let Some(node) = reached.get(next) {
            next += 1;
            let entries = self.directories.get(node);
            reached.extend(entries.into_iter().flatten().map(|(_, node)| *node));
        }
        self.directories.retain(|node, _| reached.contains(node));
        self.files.retain(|node, _| reached.contains(node));
    }

    /// Tells trees apart.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Makes all of it in an empty directory.
    pub fn write(&self, to: &Path) {
        let mut left: Vec<(Node, PathBuf)> = vec![(ROOT, to.to_owned())];
        while let Some((node, path)) = left.pop() {
            if let Some(content) = self.files.get(&node) {
                std::fs::write(path, content).unwrap();
                continue;
            }
            if node != ROOT {
                std::fs::create_dir(&path).unwrap();
            }
            let entries = self.directories[&node].iter();
            left.extend(entries.map(|(name, node)| (*node, path.join(name))));
        }
    }
}
