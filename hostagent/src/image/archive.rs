//! A tar archive of images, read where it is: its entries are listed once,
//! without touching their content, and then read by offset.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use erofs::tar::{EntryKind, Reader, TarError};

use super::region::FileRegion;

/// Headers and contents of a tar archive are aligned to this.
const RECORD_BYTES: u64 = 512;
/// The most entries of an archive. One image has a handful for each layer.
const MAX_ENTRIES: usize = 100_000;
/// The longest chain of links that is followed.
const MAX_LINKS: usize = 8;

/// An archive whose entries are known.
#[derive(Debug)]
pub struct Archive {
    place: String,
    file: Arc<File>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File { offset: u64, length: u64 },
    Link(String),
}

/// Why an archive's entries cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file has no positions to read at.
    #[error("it is not a regular file")]
    NotRegular,
    /// Reading its length failed.
    #[error("its length cannot be read")]
    Length(#[source] io::Error),
    /// It is not a tar archive, or a damaged one.
    #[error("the headers after byte {offset} cannot be read")]
    Tar {
        /// Where the entry before ended.
        offset: u64,
        /// What is wrong; its offsets count from `offset`.
        source: TarError,
    },
    /// The last entry is not all there.
    #[error("it is truncated: its entry {name:?} ends at byte {end}, the archive at byte {length}")]
    Truncated {
        /// The entry.
        name: String,
        /// Where it should end.
        end: u64,
        /// How long the archive is.
        length: u64,
    },
    /// More entries than [`MAX_ENTRIES`].
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
}

impl Archive {
    /// Lists the entries of a regular file, which is called `place` in errors.
    pub fn open(file: File, place: String) -> Result<Self, ArchiveError> {
        let metadata = file.metadata().map_err(ArchiveError::Length)?;
        if !metadata.is_file() {
            return Err(ArchiveError::NotRegular);
        }
        let file = Arc::new(file);
        let entries = list(&file, metadata.len())?;
        Ok(Self {
            place,
            file,
            entries,
        })
    }

    /// What it is called in errors.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The content of a regular file, found through links if need be.
    pub fn file(&self, name: &str) -> Option<FileRegion> {
        let mut name = normalized("", name)?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&name)? {
                Entry::File { offset, length } => {
                    return Some(FileRegion::part(&self.file, *offset, *length));
                }
                Entry::Link(target) => name = target.clone(),
            }
        }
        None
    }
}

/// A reader is started anew after each content, so that the contents, which are
/// nearly all of the archive, are not read.
fn list(file: &Arc<File>, length: u64) -> Result<HashMap<String, Entry>, ArchiveError> {
    let mut entries = HashMap::new();
    let mut start = 0;
    while start < length {
        let rest = FileRegion::part(file, start, length - start);
        let mut reader = Reader::new(rest.reader(), u64::MAX);
        let tar_error = |source| ArchiveError::Tar {
            offset: start,
            source,
        };
        let Some(entry) = reader.next_entry().map_err(tar_error)? else {
            break;
        };
        let content = start + reader.position();
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let (made, stored) = match entry.kind {
            // Nothing writes image archives with sparse files.
            EntryKind::File {
                size,
                segments: None,
            } => (
                Some(Entry::File {
                    offset: content,
                    length: size,
                }),
                size,
            ),
            EntryKind::File {
                segments: Some(segments),
                ..
            } => (None, segments.iter().map(|segment| segment.length).sum()),
            EntryKind::Symlink(target) => {
                let parent = name.trim_end_matches('/').rsplit_once('/');
                (link(parent.map_or("", |(parent, _)| parent), &target), 0)
            }
            EntryKind::HardLink(target) => (link("", &target), 0),
            _ => (None, 0),
        };
        let end = content.saturating_add(stored);
        if end > length {
            return Err(ArchiveError::Truncated {
                name: name.chars().take(300).collect(),
                end,
                length,
            });
        }
        if let (Some(name), Some(made)) = (normalized("", &name), made) {
            // The later of two entries of one name is the one that counts.
            entries.insert(name, made);
            if entries.len() > MAX_ENTRIES {
                return Err(ArchiveError::TooManyEntries);
            }
        }
        start = end.next_multiple_of(RECORD_BYTES);
    }
    Ok(entries)
}

fn link(directory: &str, target: &[u8]) -> Option<Entry> {
    let target = std::str::from_utf8(target).ok()?;
    normalized(directory, target).map(Entry::Link)
}

/// `path`, as seen from `directory`, from the top of the archive; `None` if it
/// leads out of it.
fn normalized(directory: &str, path: &str) -> Option<String> {
    let mut components: Vec<&str> = Vec::new();
    let start = if path.starts_with('/') { "" } else { directory };
    for component in start.split('/').chain(path.split('/')) {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            name => components.push(name),
        }
    }
    Some(components.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    }

    fn add_link(
        builder: &mut tar::Builder<Vec<u8>>,
        kind: tar::EntryType,
        name: &str,
        target: &str,
    ) {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o777);
        header.set_entry_type(kind);
        builder.append_link(&mut header, name, target).unwrap();
    }

    fn open(bytes: &[u8]) -> Result<Archive, ArchiveError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Archive::open(file, "test".into())
    }

    fn content(archive: &Archive, name: &str) -> Option<Vec<u8>> {
        Some(archive.file(name)?.read_to_vec(1 << 20).unwrap())
    }

    #[test]
    fn files_are_found_by_name_and_through_links() {
        let long = format!("{}/layer.tar", "d".repeat(150));
        let bytes = archive(|builder| {
            add(builder, "./manifest.json", b"[]");
            add(builder, "one/layer.tar", &[7; 1500]);
            add(builder, &long, b"long");
            add_link(
                builder,
                tar::EntryType::Symlink,
                "two/layer.tar",
                "../one/layer.tar",
            );
            add_link(builder, tar::EntryType::Link, "hard", "one/layer.tar");
        });
        let archive = open(&bytes).unwrap();
        assert_eq!(content(&archive, "manifest.json").unwrap(), b"[]");
        assert_eq!(content(&archive, &long).unwrap(), b"long");
        for name in ["one/layer.tar", "two/layer.tar", "/two/./layer.tar", "hard"] {
            assert_eq!(content(&archive, name).unwrap(), [7; 1500], "{name}");
        }
        assert!(archive.file("none").is_none());
    }

    #[test]
    fn links_in_circles_or_out_of_the_archive_lead_nowhere() {
        let bytes = archive(|builder| {
            add_link(builder, tar::EntryType::Symlink, "a", "b");
            add_link(builder, tar::EntryType::Symlink, "b", "a");
            add_link(builder, tar::EntryType::Symlink, "out", "../../etc/passwd");
        });
        let archive = open(&bytes).unwrap();
        for name in ["a", "b", "out", "../a"] {
            assert!(archive.file(name).is_none(), "{name}");
        }
    }

    #[test]
    fn a_truncated_archive_is_refused() {
        let bytes = archive(|builder| {
            add(builder, "small", b"x");
            add(builder, "large", &[1; 100_000]);
        });
        let error = open(&bytes[..50_000]).unwrap_err();
        assert!(error.to_string().contains("large"), "{error}");
    }

    #[test]
    fn what_is_no_tar_archive_is_refused() {
        let error = open(&[b'x'; 4096]).unwrap_err();
        assert!(matches!(error, ArchiveError::Tar { .. }), "{error}");
    }

    #[test]
    fn of_two_entries_of_one_name_the_last_counts() {
        let bytes = archive(|builder| {
            add(builder, "name", b"first");
            add(builder, "name", b"second");
        });
        assert_eq!(content(&open(&bytes).unwrap(), "name").unwrap(), b"second");
    }
}
