//! A writer of newc cpio archives, the format of Linux's initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! The same entries in the same order give the same bytes: inode numbers count
//! up from 1, every file belongs to root, every mtime is 0.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

/// The longest name the kernel accepts, its terminating NUL included
/// (`PATH_MAX`, checked in the kernel's `init/initramfs.c`).
const MAX_NAME_BYTES: usize = 4096;
/// Archives that follow one another must start at a multiple of 4 bytes; 512 is
/// what cpio itself pads to.
const ARCHIVE_ALIGNMENT: u64 = 512;
const TRAILER: &str = "TRAILER!!!";

const TYPE_FIFO: u32 = 0o010_000;
const TYPE_CHARACTER: u32 = 0o020_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_BLOCK: u32 = 0o060_000;
const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// The archive's destination refused bytes, or a file's source did not
    /// deliver them.
    #[error("cannot write the archive entry {path:?}")]
    Io {
        /// The entry.
        path: String,
        /// What the reader or writer reported.
        source: io::Error,
    },
    /// A path that cannot be the name of an entry.
    #[error("{path:?} cannot be an archive entry: {reason}")]
    Path {
        /// The path as it was given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A second entry of the same name.
    #[error("the archive already has an entry {0:?}")]
    Duplicate(String),
    /// Contents of 4 GiB or more, which the format has no room for.
    #[error("{path:?} has {length} bytes; the format ends at 4 GiB")]
    TooLarge {
        /// The entry.
        path: String,
        /// Its length in bytes.
        length: u64,
    },
}

/// What a device node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A character device, with its major and minor number.
    Character(u32, u32),
    /// A block device, with its major and minor number.
    Block(u32, u32),
    /// A FIFO, which has no numbers.
    Fifo,
}

/// An archive being written.
///
/// Paths are absolute or relative to the root of the archive, with the same
/// meaning. Missing parent directories are added with mode 0755.
///
/// ```
/// let mut archive = initramfs::Archive::new(Vec::new());
/// archive.file("/init", 0o755, b"#!/bin/sh\n")?;
/// archive.symlink("/bin/sh", "busybox")?;
/// let bytes = archive.finish()?;
/// assert!(bytes.starts_with(b"070701"));
/// # Ok::<(), initramfs::CpioError>(())
/// ```
#[derive(Debug)]
pub struct Archive<W> {
    to: W,
    written: u64,
    next_inode: u32,
    names: BTreeSet<String>,
}

struct Header<'a> {
    name: &'a str,
    inode: u32,
    mode: u32,
    links: u32,
    length: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(to: W) -> Self {
        Self {
            to,
            written: 0,
            next_inode: 1,
            names: BTreeSet::new(),
        }
    }

    /// Whether an entry of this path was added.
    pub fn contains(&self, path: &str) -> bool {
        normalize(path).is_ok_and(|name| self.names.contains(&name))
    }

    /// Adds a directory with the permission bits of `mode`.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), CpioError> {
        self.entry(path, TYPE_DIRECTORY, mode, (0, 0), 0, io::empty())
    }

    /// Adds a regular file with the permission bits of `mode`.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<(), CpioError> {
        self.file_from(path, mode, contents.len() as u64, contents)
    }

    /// Adds a regular file of exactly `length` bytes read from `contents`.
    pub fn file_from(
        &mut self,
        path: &str,
        mode: u32,
        length: u64,
        contents: impl Read,
    ) -> Result<(), CpioError> {
        self.entry(path, TYPE_REGULAR, mode, (0, 0), length, contents)
    }

    /// Adds a symbolic link that says `target`, which is not looked at.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        if target.is_empty() || target.contains('\0') || target.len() >= MAX_NAME_BYTES {
            return Err(CpioError::Path {
                path: path.to_owned(),
                reason: "its target is empty, too long or has a NUL byte",
            });
        }
        let length = target.len() as u64;
        self.entry(path, TYPE_SYMLINK, 0o777, (0, 0), length, target.as_bytes())
    }

    /// Adds a device node with the permission bits of `mode`.
    pub fn device(&mut self, path: &str, mode: u32, kind: DeviceKind) -> Result<(), CpioError> {
        let (file_type, device) = match kind {
            DeviceKind::Character(major, minor) => (TYPE_CHARACTER, (major, minor)),
            DeviceKind::Block(major, minor) => (TYPE_BLOCK, (major, minor)),
            DeviceKind::Fifo => (TYPE_FIFO, (0, 0)),
        };
        self.entry(path, file_type, mode, device, 0, io::empty())
    }

    /// Writes the end of the archive, padded so that another may follow it in
    /// the same initramfs, and gives the destination back.
    pub fn finish(mut self) -> Result<W, CpioError> {
        let failed = |source| CpioError::Io {
            path: TRAILER.to_owned(),
            source,
        };
        let trailer = Header {
            name: TRAILER,
            inode: 0,
            mode: 0,
            links: 1,
            length: 0,
            device: (0, 0),
        };
        self.header(&trailer).map_err(failed)?;
        self.pad(ARCHIVE_ALIGNMENT).map_err(failed)?;
        self.to.flush().map_err(failed)?;
        Ok(self.to)
    }

    fn entry(
        &mut self,
        path: &str,
        file_type: u32,
        mode: u32,
        device: (u32, u32),
        length: u64,
        contents: impl Read,
    ) -> Result<(), CpioError> {
        let name = normalize(path)?;
        if self.names.contains(&name) {
            return Err(CpioError::Duplicate(name));
        }
        let Ok(entry_length) = u32::try_from(length) else {
            return Err(CpioError::TooLarge { path: name, length });
        };
        if let Some((parent, _)) = name.rsplit_once('/')
            && !self.names.contains(parent)
        {
            self.directory(parent, 0o755)?;
        }
        let header = Header {
            name: &name,
            inode: self.next_inode,
            mode: file_type | (mode & 0o7777),
            links: if file_type == TYPE_DIRECTORY { 2 } else { 1 },
            length: entry_length,
            device,
        };
        self.write_entry(&header, contents)
            .map_err(|source| CpioError::Io {
                path: name.clone(),
                source,
            })?;
        self.next_inode += 1;
        self.names.insert(name);
        Ok(())
    }

    fn write_entry(&mut self, header: &Header<'_>, contents: impl Read) -> io::Result<()> {
        self.header(header)?;
        let length = u64::from(header.length);
        let copied = io::copy(&mut contents.take(length), &mut self.to)?;
        if copied < length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("its contents ended after {copied} of {length} bytes"),
            ));
        }
        self.written += copied;
        self.pad(4)
    }

    fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        let name_bytes = header.name.len() + 1;
        // Magic; ino, mode, uid, gid, nlink, mtime, filesize; major and minor of
        // the device it lies on and of the device it is; namesize; checksum.
        let text = format!(
            "070701{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{}\0",
            header.inode,
            header.mode,
            0,
            0,
            header.links,
            0,
            header.length,
            0,
            0,
            header.device.0,
            header.device.1,
            name_bytes,
            0,
            header.name,
        );
        self.to.write_all(text.as_bytes())?;
        self.written += text.len() as u64;
        self.pad(4)
    }

    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        io::copy(&mut io::repeat(0).take(missing), &mut self.to)?;
        self.written += missing;
        Ok(())
    }
}

/// The form the kernel expects: no leading, doubled or trailing slash.
fn normalize(path: &str) -> Result<String, CpioError> {
    let refused = |reason| {
        Err(CpioError::Path {
            path: path.to_owned(),
            reason,
        })
    };
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    let name = parts.join("/");
    if name.is_empty() {
        refused("it is empty")
    } else if parts.contains(&"..") {
        refused("it has a component \"..\"")
    } else if name.contains('\0') {
        refused("it has a NUL byte")
    } else if name.len() >= MAX_NAME_BYTES {
        refused("it is longer than 4095 bytes")
    } else if name == TRAILER {
        refused("it marks the end of an archive")
    } else {
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Entry {
        name: String,
        inode: u32,
        mode: u32,
        links: u32,
        mtime: u32,
        owner: (u32, u32),
        device: (u32, u32),
        contents: Vec<u8>,
    }

    /// Reads an archive the way the kernel does, to the trailer.
    fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let name_end = at + 110 + field(11) as usize;
            assert_eq!(bytes[name_end - 1], 0);
            let name = String::from_utf8(bytes[at + 110..name_end - 1].to_vec()).unwrap();
            let start = name_end.next_multiple_of(4);
            let end = start + field(6) as usize;
            if name == TRAILER {
                assert!(bytes[end..].iter().all(|byte| *byte == 0));
                assert_eq!(bytes.len() % 512, 0);
                return entries;
            }
            entries.push(Entry {
                name,
                inode: field(0),
                mode: field(1),
                links: field(4),
                mtime: field(5),
                owner: (field(2), field(3)),
                device: (field(9), field(10)),
                contents: bytes[start..end].to_vec(),
            });
            at = end.next_multiple_of(4);
        }
    }

    fn entry(name: &str, inode: u32, mode: u32, contents: &[u8]) -> Entry {
        Entry {
            name: name.to_owned(),
            inode,
            mode,
            links: if mode & 0o170_000 == TYPE_DIRECTORY {
                2
            } else {
                1
            },
            mtime: 0,
            owner: (0, 0),
            device: (0, 0),
            contents: contents.to_vec(),
        }
    }

    #[test]
    fn every_kind_of_entry_reads_back_as_it_was_added() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/init", 0o755, b"hello").unwrap();
        archive.directory("tmp", 0o1777).unwrap();
        archive.symlink("/sh", "bin/dash").unwrap();
        archive
            .device("console", 0o600, DeviceKind::Character(5, 1))
            .unwrap();
        archive
            .device("vda", 0o660, DeviceKind::Block(254, 300))
            .unwrap();
        archive.device("pipe", 0o644, DeviceKind::Fifo).unwrap();
        let entries = read(&archive.finish().unwrap());
        let console = Entry {
            device: (5, 1),
            ..entry("console", 4, 0o020_600, b"")
        };
        let disk = Entry {
            device: (254, 300),
            ..entry("vda", 5, 0o060_660, b"")
        };
        assert_eq!(
            entries,
            [
                entry("init", 1, 0o100_755, b"hello"),
                entry("tmp", 2, 0o041_777, b""),
                entry("sh", 3, 0o120_777, b"bin/dash"),
                console,
                disk,
                entry("pipe", 6, 0o010_644, b""),
            ]
        );
    }

    #[test]
    fn missing_parents_are_added_once_and_before_their_children() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/one", 0o644, b"1").unwrap();
        archive.file("a/b/two", 0o644, b"2").unwrap();
        let names: Vec<String> = read(&archive.finish().unwrap())
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two"]);
    }

    #[test]
    fn paths_that_cannot_be_entries_are_refused() {
        let mut archive = Archive::new(Vec::new());
        let long = "x".repeat(4096);
        for path in ["", "/", ".", "a/../b", "a\0b", &long, TRAILER] {
            assert!(
                matches!(archive.file(path, 0o644, b""), Err(CpioError::Path { .. })),
                "{path:?}"
            );
        }
        archive.file("/a", 0o644, b"").unwrap();
        assert!(archive.contains("a"));
        assert!(matches!(
            archive.directory("./a", 0o755),
            Err(CpioError::Duplicate(name)) if name == "a"
        ));
    }

    #[test]
    fn contents_that_do_not_match_their_length_are_refused() {
        let mut archive = Archive::new(Vec::new());
        let short = archive.file_from("short", 0o644, 10, &b"123"[..]);
        assert!(matches!(short, Err(CpioError::Io { path, .. }) if path == "short"));
        let huge = archive.file_from("huge", 0o644, 1 << 32, io::empty());
        assert!(matches!(huge, Err(CpioError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_set_of_files_reads_back_and_has_one_encoding(
            files in proptest::collection::btree_map(
                "[a-z]{1,3}(/[a-z]{4,300}){0,2}",
                proptest::collection::vec(any::<u8>(), 0..100),
                0..20,
            )
        ) {
            let write = || {
                let mut archive = Archive::new(Vec::new());
                for (path, contents) in &files {
                    if !archive.contains(path) {
                        archive.file(path, 0o640, contents).unwrap();
                    }
                }
                archive.finish().unwrap()
            };
            let bytes = write();
            prop_assert_eq!(&bytes, &write());
            for entry in read(&bytes) {
                if entry.mode == 0o100_640 {
                    prop_assert_eq!(&entry.contents, &files[&entry.name]);
                }
            }
        }
    }
}
