//! The cache of what is downloaded or takes long to build, shared by every
//! clone of the repository: `$XDG_CACHE_HOME/mote`, or `~/.cache/mote`.
//!
//! An entry is a directory whose name holds the key of what it was made from.
//! It appears complete, by a rename, or not at all.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::progress;

/// The cache's directory, created if it is missing.
pub fn directory() -> Result<PathBuf> {
    let parent = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        _ => anyhow::bail!("neither XDG_CACHE_HOME nor HOME is set: there is no place for a cache"),
    };
    let directory = parent.join("mote");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create the cache {}", directory.display()))?;
    Ok(directory)
}

/// The entry `name`, made by `fill` in the empty directory it is given unless
/// it is there already. Two processes that want the same entry make it once.
pub fn entry(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    entry_in(&directory()?, name, fill)
}

fn entry_in(cache: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = cache.join(name);
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock(&cache.join(format!("{name}.lock")))?;
    if path.exists() {
        return Ok(path);
    }
    // Left by a process that was killed: we hold the lock, so it is not in use.
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    if let Err(error) = fill(&partial) {
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    fs::rename(&partial, &path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// Holds `path` locked until the file is dropped.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
    let _step = progress::step("waiting for another process that fills the cache");
    flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_once() {
        let cache = tempfile::tempdir().unwrap();
        let make = |text: &'static str| {
            entry_in(cache.path(), "thing-1", move |directory| {
                Ok(fs::write(directory.join("file"), text)?)
            })
            .unwrap()
        };
        assert_eq!(make("first"), make("second"));
        let file = cache.path().join("thing-1/file");
        assert_eq!(fs::read_to_string(file).unwrap(), "first");
    }

    #[test]
    fn a_failed_fill_leaves_no_entry_and_the_next_one_starts_afresh() {
        let cache = tempfile::tempdir().unwrap();
        let failed = entry_in(cache.path(), "thing", |directory| {
            fs::write(directory.join("half"), "")?;
            anyhow::bail!("the disk is full")
        });
        assert!(failed.is_err());
        // As a killed process leaves it.
        fs::create_dir(cache.path().join("thing.partial")).unwrap();
        fs::write(cache.path().join("thing.partial/half"), "").unwrap();
        let path = entry_in(cache.path(), "thing", |directory| {
            assert_eq!(fs::read_dir(directory)?.count(), 0);
            Ok(())
        });
        assert!(path.unwrap().is_dir());
    }
}
