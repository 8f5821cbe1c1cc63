//! Everything that can be observed about a tree, from a directory or an image.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use erofs::image::{Inode, ReadAt};
use erofs::{FileType, Image};

/// A tree: paths below the root, which itself is the empty path.
pub type Snapshot = BTreeMap<Vec<u8>, Facts>;

/// What is to be the same about a file on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub content: Content,
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names of a file; of a directory, 2 and its subdirectories.
    pub links: u64,
    /// The first path of the same inode.
    pub first_name: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(bytes) => {
                let start = bytes[..bytes.len().min(16)].escape_ascii();
                write!(f, "File({} bytes, \"{start}\"…)", bytes.len())
            }
            Self::Directory => f.write_str("Directory"),
            Self::Symlink(target) => write!(f, "Symlink({})", target.escape_ascii()),
            Self::CharDevice(major, minor) => write!(f, "CharDevice({major}:{minor})"),
            Self::BlockDevice(major, minor) => write!(f, "BlockDevice({major}:{minor})"),
            Self::Fifo => f.write_str("Fifo"),
        }
    }
}

/// Compares two trees path by path, so that a failure names what differs.
pub fn assert_same(left: &Snapshot, right: &Snapshot, what: &str) {
    let show = |path: &[u8]| path.escape_ascii().to_string();
    for (path, facts) in left {
        match right.get(path) {
            Some(other) => assert_eq!(facts, other, "{what}: \"{}\" differs", show(path)),
            None => panic!("{what}: \"{}\" is only on the left: {facts:?}", show(path)),
        }
    }
    for (path, facts) in right {
        let known = left.contains_key(path);
        assert!(
            known,
            "{what}: \"{}\" is only on the right: {facts:?}",
            show(path)
        );
    }
}

/// Forgets what `fsck.erofs` 1.5 does not restore: extended attributes, which
/// names are one file, the set-id bits, which its chown(2) after chmod(2)
/// clears, and the holes of sparse files, after which it goes on without a gap.
pub fn as_fsck_restores(mut snapshot: Snapshot) -> Snapshot {
    for facts in snapshot.values_mut() {
        facts.permissions &= 0o1777;
        if let Content::File(bytes) = &mut facts.content {
            let blocks = bytes.chunks(4096);
            *bytes = blocks
                .filter(|block| block.iter().any(|byte| *byte != 0))
                .collect::<Vec<_>>()
                .concat();
        }
        facts.xattrs.clear();
        facts.first_name.clear();
        if facts.content != Content::Directory {
            facts.links = 1;
        }
    }
    snapshot
}

/// Looks at a directory through the kernel.
pub fn of_directory(root: &Path) -> Snapshot {
    observe(root, false)
}

/// Looks at a mount of overlayfs. Where only one layer has a directory, reading
/// it also gives the names of whiteouts, which then are not there.
pub fn of_overlay(root: &Path) -> Snapshot {
    observe(root, true)
}

fn observe(root: &Path, may_list_whiteouts: bool) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut first_names = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(std::ffi::OsStr::from_bytes(&path));
        let metadata = match fs::symlink_metadata(&full) {
            Err(error) if may_list_whiteouts && error.kind() == ErrorKind::NotFound => continue,
            other => other.unwrap(),
        };
        let kind = metadata.file_type();
        let device = || {
            let rdev = metadata.rdev();
            (rustix::fs::major(rdev), rustix::fs::minor(rdev))
        };
        let mut links = metadata.nlink();
        let content = if kind.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&full)
                .unwrap()
                .map(|entry| entry.unwrap())
                .collect();
            // Not every file system counts subdirectories as links.
            let is_dir = |entry: &&fs::DirEntry| entry.file_type().unwrap().is_dir();
            links = 2 + names.iter().filter(is_dir).count() as u64;
            names.sort_by_key(|entry| entry.file_name());
            for entry in names.iter().rev() {
                pending.push(join(&path, &entry.file_name().into_vec()));
            }
            Content::Directory
        } else if kind.is_symlink() {
            Content::Symlink(fs::read_link(&full).unwrap().into_os_string().into_vec())
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            File::open(&full).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, metadata.size());
            Content::File(bytes)
        } else if kind.is_char_device() {
            let (major, minor) = device();
            Content::CharDevice(major, minor)
        } else if kind.is_block_device() {
            let (major, minor) = device();
            Content::BlockDevice(major, minor)
        } else {
            assert!(kind.is_fifo(), "{full:?}");
            Content::Fifo
        };
        let first_name = first_names
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| path.clone())
            .clone();
        let facts = Facts {
            content,
            permissions: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            xattrs: xattrs_of(&full),
            links,
            first_name,
        };
        snapshot.insert(path, facts);
    }
    relabel(&mut snapshot);
    snapshot
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => panic!("listing extended attributes of {path:?}: {error}"),
    };
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| {
            let mut value = vec![0; 1 << 16];
            match rustix::fs::lgetxattr(path, name, &mut value) {
                Ok(length) => value.truncate(length),
                // Listed but not to be had: "user." of a pipe (xattr(7)).
                Err(rustix::io::Errno::NODATA) => return None,
                Err(error) => panic!("{} of {path:?}: {error}", name.escape_ascii()),
            }
            Some((name.to_vec(), value))
        })
        .collect()
}

/// Looks at an image through this crate's reader, which checks the image as it
/// goes.
pub fn of_image<R: ReadAt>(image: &Image<R>) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut inodes = HashSet::new();
    let mut pending = vec![(Vec::new(), image.root().unwrap())];
    while let Some((path, inode)) = pending.pop() {
        inodes.insert(inode.nid());
        if inode.file_type() == FileType::Directory {
            for entry in image.entries(&inode).unwrap() {
                let child = image.inode(entry.nid).unwrap();
                assert_eq!(child.file_type(), entry.file_type);
                pending.push((join(&path, &entry.name), child));
            }
        }
        snapshot.insert(path, facts_of_inode(image, &inode));
    }
    assert_eq!(inodes.len() as u64, image.inodes());
    relabel(&mut snapshot);
    snapshot
}

fn facts_of_inode<R: ReadAt>(image: &Image<R>, inode: &Inode) -> Facts {
    let device = || {
        let number = inode.device().unwrap();
        (number.major(), number.minor())
    };
    let content = match inode.file_type() {
        FileType::Regular => {
            let mut bytes = vec![0xee; inode.size() as usize + 1];
            let count = image.read_at(inode, &mut bytes, 0).unwrap();
            assert_eq!(count as u64, inode.size());
            bytes.truncate(count);
            Content::File(bytes)
        }
        FileType::Directory => Content::Directory,
        FileType::Symlink => Content::Symlink(image.read_link(inode).unwrap()),
        FileType::CharDevice => Content::CharDevice(device().0, device().1),
        FileType::BlockDevice => Content::BlockDevice(device().0, device().1),
        FileType::Fifo => Content::Fifo,
    };
    let attributes = inode.attributes();
    let xattrs = image.xattrs(inode).unwrap();
    Facts {
        content,
        permissions: u32::from(attributes.permissions),
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: (
            attributes.mtime.seconds,
            i64::from(attributes.mtime.nanoseconds),
        ),
        xattrs: xattrs
            .iter()
            .map(|xattr| (xattr.name(), xattr.value().to_vec()))
            .collect(),
        links: u64::from(inode.links()),
        // Replaced by a path when all are known.
        first_name: inode.nid().to_le_bytes().to_vec(),
    }
}

/// Replaces what names an inode by the first of its paths in sorted order.
fn relabel(snapshot: &mut Snapshot) {
    let mut first = HashMap::new();
    for (path, facts) in snapshot {
        let label = std::mem::take(&mut facts.first_name);
        facts.first_name = first.entry(label).or_insert_with(|| path.clone()).clone();
    }
}

pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}
