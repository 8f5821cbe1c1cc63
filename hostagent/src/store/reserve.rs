//! Room on the disk that is kept for making room.
//!
//! To remove an image something must be written first: the new `images.json`, a directory
//! in `staging`. On a disk that is full to the last block that would fail, and so would what
//! helps. So the store has a file that nobody reads, and gives a piece of it back when such a
//! write finds no space. It is filled again when the store is next opened, if there is room.
//! A file system that cannot set blocks aside for a file (fallocate(2)) keeps none.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatvfs};

use super::{Store, StoreError};

/// How long it is: what the two files of a thousand images take.
const RESERVE_BYTES: u64 = 2 << 20;
/// What of it is given back at a time. What writes little does not use up all of it.
const PIECE_BYTES: u64 = 128 << 10;

impl Store {
    /// Fills the reserve, if there is room for all of it.
    pub(super) fn keep_reserve(&self) {
        // What cannot be kept now is kept when the store is next opened.
        let _ = fill(&self.reserve());
    }

    /// Does what writes little and leads to more room; on a full disk in what the reserve
    /// gives back.
    pub(super) fn in_reserve<T>(
        &self,
        mut work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Others may fill it meanwhile: it is not tried for ever.
        for _ in 0..RESERVE_BYTES / PIECE_BYTES {
            match work() {
                Err(StoreError::NoSpace { .. }) if give_back(&self.reserve()) => {}
                outcome => return outcome,
            }
        }
        work()
    }

    fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }
}

fn fill(path: &Path) -> io::Result<()> {
    let kept = |file: &std::fs::Metadata| (file.blocks() * 512).min(file.len());
    if path
        .metadata()
        .is_ok_and(|file| kept(&file) >= RESERVE_BYTES)
    {
        return Ok(());
    }
    let mut options = File::options();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    let before = file.metadata()?;
    let system = fstatvfs(&file)?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    // Not the last of it: others have work to do with that.
    if free < RESERVE_BYTES.saturating_sub(kept(&before)) + RESERVE_BYTES {
        return Ok(());
    }
    fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)
        .inspect_err(|_| drop(file.set_len(before.len())))?;
    Ok(())
}

/// Gives a piece back; false if there is none.
fn give_back(path: &Path) -> bool {
    let shortened = || -> io::Result<bool> {
        let file = File::options().write(true).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        let before = file.metadata()?.len();
        file.set_len(before.saturating_sub(PIECE_BYTES))?;
        Ok(before > 0)
    };
    shortened().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_full_disk_has_room_as_long_as_the_reserve_lasts_and_it_is_filled_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let length = || store.reserve().metadata().unwrap().len();
        assert_eq!(length(), RESERVE_BYTES);
        // Of one that needs as many pieces, what is left.
        let left_after = |pieces: u64| {
            let mut failures = 0;
            let outcome = store.in_reserve(|| {
                failures += 1;
                match failures > pieces {
                    true => Ok(()),
                    false => Err(StoreError::io(store.root(), "it", Errno::NOSPC.into())),
                }
            });
            outcome.map(|()| length())
        };
        assert_eq!(left_after(0).unwrap(), RESERVE_BYTES);
        assert_eq!(left_after(2).unwrap(), RESERVE_BYTES - 2 * PIECE_BYTES);
        left_after(100).unwrap_err();
        assert_eq!(length(), 0);
        Store::open(directory.path()).unwrap();
        assert_eq!(length(), RESERVE_BYTES);
    }

    #[test]
    fn what_fails_for_another_reason_is_not_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut tries = 0;
        let outcome = store.in_reserve(|| {
            tries += 1;
            Err::<(), _>(StoreError::io(store.root(), "it", Errno::IO.into()))
        });
        outcome.unwrap_err();
        assert_eq!(tries, 1);
    }
}
