//! Temporary directories that never outlive their owner for long.
//!
//! What is written is written into a staging directory in the same file system
//! and renamed into place once it is whole and on disk. The owner holds a
//! `flock(2)` on the directory itself; whoever opens the store next removes those
//! whose lock is free, because their owner is gone. No process id is ever
//! guessed at.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::lock::{FileLock, flock_retrying};

/// Creating a directory and locking it are two steps; whoever does them, or
/// looks for stale directories, holds this lock meanwhile.
const GATE: &str = ".gate";
/// Attempts to find a free name.
const MAX_ATTEMPTS: u32 = 1000;

/// A directory to build something in. Dropping it removes it with all in it.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    // Closing the directory releases the lock.
    _lock: File,
}

impl Staging {
    /// Makes a directory under `parent`.
    pub fn create(parent: &Path) -> io::Result<Self> {
        let _gate = FileLock::acquire_brief(&parent.join(GATE))?;
        for attempt in 0..MAX_ATTEMPTS {
            // The process id only makes a collision unlikely.
            let path = parent.join(format!("{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            let lock = File::open(&path)?;
            flock_retrying(&lock, FlockOperation::NonBlockingLockExclusive)?;
            return Ok(Self { path, _lock: lock });
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directories under `parent` whose owners are gone; returns how
    /// many.
    pub fn remove_stale(parent: &Path) -> io::Result<usize> {
        let _gate = FileLock::acquire_brief(&parent.join(GATE))?;
        let mut removed = 0;
        for entry in std::fs::read_dir(parent)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let directory = match File::open(entry.path()) {
                Ok(directory) => directory,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match flock_retrying(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    std::fs::remove_dir_all(entry.path())?;
                    removed += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed as stale later.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_owner_keeps_its_directory_and_a_dead_one_does_not() {
        let parent = tempfile::tempdir().unwrap();
        let living = Staging::create(parent.path()).unwrap();
        std::fs::write(living.path().join("part"), "x").unwrap();
        let stale = parent.path().join("1-0");
        std::fs::create_dir(&stale).unwrap();
        std::fs::write(stale.join("part"), "x").unwrap();

        assert_eq!(Staging::remove_stale(parent.path()).unwrap(), 1);
        assert!(!stale.exists());
        assert!(living.path().join("part").exists());
    }

    #[test]
    fn dropping_removes_everything() {
        let parent = tempfile::tempdir().unwrap();
        let staging = Staging::create(parent.path()).unwrap();
        std::fs::create_dir(staging.path().join("sub")).unwrap();
        std::fs::write(staging.path().join("sub/part"), "x").unwrap();
        drop(staging);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn two_owners_in_one_process_do_not_share() {
        let parent = tempfile::tempdir().unwrap();
        let one = Staging::create(parent.path()).unwrap();
        let two = Staging::create(parent.path()).unwrap();
        assert_ne!(one.path(), two.path());
        assert_eq!(Staging::remove_stale(parent.path()).unwrap(), 0);
    }
}
