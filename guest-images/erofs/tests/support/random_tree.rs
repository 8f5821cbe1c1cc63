//! Random trees, made for real in a directory.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::tools::is_root;

/// How to make one thing in the tree.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Which of the directories made before it is in.
    pub parent: prop::sample::Index,
    pub name: Vec<u8>,
    pub kind: KindSpec,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone)]
pub enum KindSpec {
    Directory,
    /// Bytes made from a seed.
    File {
        size: usize,
        seed: u8,
    },
    /// Pieces of data in a file of this size: offset, length.
    Sparse {
        size: u64,
        pieces: Vec<(u64, usize)>,
    },
    Symlink(Vec<u8>),
    /// Another name of one of the files made before.
    HardLink(prop::sample::Index),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

pub fn tree(nodes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<NodeSpec>> {
    vec(node(), nodes)
}

fn node() -> impl Strategy<Value = NodeSpec> {
    let owner = prop_oneof![Just(0_u32), 1..70_000_u32, 2_000_000..u32::MAX - 1];
    let seconds = prop_oneof![
        Just(0_i64),
        // Before 1970 too, and past 2038.
        -100_000_000..0_i64,
        0..5_000_000_000_i64,
    ];
    let nanoseconds = prop_oneof![Just(0_i64), 0..1_000_000_000_i64];
    (
        any::<prop::sample::Index>(),
        name(),
        kind(),
        0..0o10000_u32,
        (owner.clone(), owner),
        (seconds, nanoseconds),
        vec(xattr(), 0..4),
    )
        .prop_map(
            |(parent, name, kind, mode, (uid, gid), mtime, xattrs)| NodeSpec {
                parent,
                name,
                kind,
                mode,
                uid,
                gid,
                mtime,
                xattrs,
            },
        )
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no separator", |byte| !matches!(byte, 0 | b'/'));
    prop_oneof![
        4 => "[a-e]{1,3}".prop_map(String::into_bytes),
        // What sorts before "." and "..", or between them and others.
        1 => "[!+,.-][a!.-]{0,2}".prop_map(String::into_bytes),
        2 => vec(byte.clone(), 1..40),
        1 => vec(byte, 254..=255),
    ]
    .prop_filter("usable name", |name| {
        !matches!(name.as_slice(), b"." | b"..") && !name.starts_with(b".wh.")
    })
}

fn kind() -> impl Strategy<Value = KindSpec> {
    let size = prop_oneof![
        Just(0_usize),
        1..40_usize,
        511..514_usize,
        4095..4098_usize,
        8191..8194_usize,
        0..100_000_usize,
    ];
    let piece = (0..400_u64, 1..9000_usize).prop_map(|(block, length)| (block * 4096, length));
    let target = vec(any::<u8>().prop_filter("no NUL", |byte| *byte != 0), 1..300);
    prop_oneof![
        4 => Just(KindSpec::Directory),
        6 => (size, any::<u8>()).prop_map(|(size, seed)| KindSpec::File { size, seed }),
        2 => (0..2_000_000_u64, vec(piece, 0..4))
            .prop_map(|(size, pieces)| KindSpec::Sparse { size, pieces }),
        2 => target.prop_map(KindSpec::Symlink),
        2 => any::<prop::sample::Index>().prop_map(KindSpec::HardLink),
        1 => (1..4096_u32, 0..1_u32 << 20).prop_map(|(a, b)| KindSpec::CharDevice(a, b)),
        1 => (0..4096_u32, 0..1_u32 << 20).prop_map(|(a, b)| KindSpec::BlockDevice(a, b)),
        1 => Just(KindSpec::Fifo),
    ]
}

fn xattr() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let name = prop_oneof![Just("user."), Just("trusted."), Just("security.")];
    let any_value = vec(any::<u8>(), 0..60);
    prop_oneof![
        4 => (name, "[a-z]{1,30}", any_value)
            .prop_map(|(prefix, name, value)| ((prefix.to_owned() + &name).into_bytes(), value)),
        // cap_net_bind_service=ep, version 2 (linux/capability.h). The kernel
        // refuses what is no capability.
        1 => Just((
            b"security.capability".to_vec(),
            vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )),
    ]
}

/// Makes the tree in an empty directory. What cannot be made is left out: a
/// second thing of one name, and what takes root without being root.
pub fn make(root: &Path, nodes: &[NodeSpec]) {
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut made: Vec<(PathBuf, &NodeSpec)> = Vec::new();
    for node in nodes {
        let parent = node.parent.get(&directories).clone();
        let path = parent.join(OsStr::from_bytes(&node.name));
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match make_one(&path, &node.kind, &files) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => panic!("making {path:?}: {error}"),
        }
        match node.kind {
            KindSpec::HardLink(_) => continue,
            KindSpec::Directory => directories.push(path.clone()),
            _ => files.push(path.clone()),
        }
        made.push((path, node));
    }
    // Last and backwards, since what is made in a directory changes its time.
    for (path, node) in made.iter().rev() {
        set_attributes(path, node);
    }
}

fn make_one(path: &Path, kind: &KindSpec, files: &[PathBuf]) -> io::Result<bool> {
    let device = |kind, major, minor| {
        if is_root() {
            let number = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(CWD, path, kind, Mode::RUSR, number)?;
        }
        Ok(is_root())
    };
    match kind {
        KindSpec::Directory => fs::create_dir(path)?,
        KindSpec::File { size, seed } => {
            File::create(path)?.write_all(&content(*size, *seed))?;
        }
        KindSpec::Sparse { size, pieces } => {
            let file = File::create(path)?;
            for (offset, length) in pieces {
                file.write_all_at(&content(*length, *offset as u8), *offset)?;
            }
            let end = file.metadata()?.len();
            file.set_len(end.max(*size))?;
        }
        KindSpec::Symlink(target) => {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path)?;
        }
        KindSpec::HardLink(index) => {
            if files.is_empty() {
                return Ok(false);
            }
            // Not through symbolic links: linkat(2) without AT_SYMLINK_FOLLOW.
            rustix::fs::linkat(CWD, index.get(files), CWD, path, AtFlags::empty())?;
        }
        KindSpec::CharDevice(major, minor) => {
            return device(FileType::CharacterDevice, *major, *minor);
        }
        KindSpec::BlockDevice(major, minor) => {
            return device(FileType::BlockDevice, *major, *minor);
        }
        KindSpec::Fifo => rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0)?,
    }
    Ok(true)
}

/// Bytes that differ from block to block.
fn content(size: usize, seed: u8) -> Vec<u8> {
    (0..size)
        .map(|at| (at as u8) ^ ((at >> 8) as u8).wrapping_mul(31) ^ seed)
        .collect()
}

fn set_attributes(path: &Path, node: &NodeSpec) {
    let is_symlink = matches!(node.kind, KindSpec::Symlink(_));
    if is_root() {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    if !is_symlink {
        // Without root, the test itself must be able to read.
        let mode = if is_root() {
            node.mode
        } else {
            node.mode | 0o700
        };
        rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
    }
    for (name, value) in &node.xattrs {
        // Who may set what where depends on the file system and the kind of
        // file; GNU tar meets the same answers when it unpacks.
        let _ = rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty());
    }
    let time = Timespec {
        tv_sec: node.mtime.0,
        tv_nsec: node.mtime.1,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Whether extended attributes of a user can be set in this directory: tmpfs of
/// Linux 6.1 has none.
pub fn has_user_xattrs(directory: &Path) -> bool {
    let path = directory.join("xattr-probe");
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)
        .unwrap();
    let result = rustix::fs::setxattr(&path, "user.probe", b"1", XattrFlags::empty());
    fs::remove_file(&path).unwrap();
    result.is_ok()
}
