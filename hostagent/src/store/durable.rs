//! Files and directories that are either there and whole or not there, whatever
//! happens meanwhile: written aside, brought to disk, renamed, and the rename
//! brought to disk.
//!
//! Each wait for the disk takes as long as a write to it and a flush of its cache,
//! whatever is written. What does not depend on one another is waited for at once
//! ([`Unsynced`]).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Makes a directory that only its owner can enter, and its parents.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    create_directory(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    sync_directory(parent)
}

/// Brings the names in a directory to disk.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a new file and brings it to disk. It is not yet in place.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_new(File::options().write(true).create_new(true), path, bytes)
}

/// The same for a file that only its owner may read.
pub(super) fn write_secret_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    write_new(
        options.write(true).create_new(true).mode(0o600),
        path,
        bytes,
    )
}

fn write_new(options: &OpenOptions, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Files and directories that are not on disk yet, to be waited for together: the file
/// system brings what is asked for at the same time to disk at the same time. `syncfs(2)`
/// would wait for what others have written to it, too.
#[derive(Debug, Default)]
#[must_use = "nothing of it is on disk before `sync`"]
pub(super) struct Unsynced(Vec<File>);

impl Unsynced {
    /// Adds a file that is written already.
    pub fn add(&mut self, file: File) {
        self.0.push(file);
    }

    /// Adds a directory: the names in it.
    pub fn add_directory(&mut self, path: &Path) -> io::Result<()> {
        self.0.push(File::open(path)?);
        Ok(())
    }

    /// Writes a new file and adds it.
    pub fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        self.0.push(file);
        Ok(())
    }

    /// Adds what another has.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Waits until all of it is on disk.
    pub fn sync(&mut self) -> io::Result<()> {
        sync_all(&std::mem::take(&mut self.0))
    }

    /// Begins to bring all of it to disk, while the caller does something else.
    pub fn start(&mut self) -> Syncing {
        let files = Arc::new(std::mem::take(&mut self.0));
        let thread = std::thread::Builder::new().name("sync".to_owned());
        let of_thread = Arc::clone(&files);
        match thread.spawn(move || sync_all(&of_thread)) {
            Ok(thread) => Syncing::Started(thread),
            Err(_) => Syncing::Ended(sync_all(&files)),
        }
    }
}

/// What is being brought to disk.
#[derive(Debug)]
#[must_use = "nothing of it is on disk before `wait`"]
pub(super) enum Syncing {
    /// By a thread that waits for all of it.
    Started(JoinHandle<io::Result<()>>),
    /// Where there can be no more threads.
    Ended(io::Result<()>),
}

impl Syncing {
    /// Waits until all of it is on disk.
    pub fn wait(self) -> io::Result<()> {
        match self {
            Self::Started(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Ended(outcome) => outcome,
        }
    }
}

fn sync_all(files: &[File]) -> io::Result<()> {
    let Some((first, others)) = files.split_first() else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let mut started = Vec::with_capacity(others.len());
        for file in others {
            let thread = std::thread::Builder::new().name("sync".to_owned());
            match thread.spawn_scoped(scope, || file.sync_all()) {
                Ok(thread) => started.push(thread),
                // Where there can be no more threads, one after another.
                Err(_) => file.sync_all()?,
            }
        }
        first.sync_all()?;
        for thread in started {
            match thread.join() {
                Ok(outcome) => outcome?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}

/// Has the system begin to write this part of a file to disk (`sync_file_range(2)`). It
/// promises nothing: what must be on disk is brought there by [`Unsynced`], whose wait is so
/// much shorter.
pub(super) fn begin_write_back(file: &File, offset: u64, bytes: u64) {
    let (offset, bytes) = (offset as libc::off64_t, bytes as libc::off64_t);
    let flags = libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: takes no addresses, and the descriptor is open as long as `file`.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, flags) };
}

/// Renames what was written aside to its place, over what is there if that is
/// a file.
pub(super) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        sync_directory(from)?;
    }
    std::fs::rename(from, to)?;
    match to.parent() {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_brought_to_disk_is_an_error_whichever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        for place in 0..3 {
            let mut unsynced = Unsynced::default();
            for number in 0..3 {
                if number == place {
                    // Nothing brings a pipe to disk.
                    let (reader, _writer) = std::io::pipe().unwrap();
                    unsynced.add(std::os::fd::OwnedFd::from(reader).into());
                }
                let path = directory.path().join(format!("{place}-{number}"));
                unsynced.write(&path, b"content").unwrap();
                assert_eq!(std::fs::read(path).unwrap(), b"content");
            }
            unsynced.add_directory(directory.path()).unwrap();
            let outcome = match place {
                0 => unsynced.start().wait(),
                _ => unsynced.sync(),
            };
            outcome.unwrap_err();
            // It has nothing any more.
            unsynced.sync().unwrap();
        }
    }
}
