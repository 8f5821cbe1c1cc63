//! Locks between processes: `flock(2)` on a file, which the kernel releases
//! when its holder dies in whatever way.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// How often a lock that another holds for long is tried.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A lock that this process holds. Dropping it releases it and removes its file.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    // Closing the file releases the lock.
    file: File,
}

impl FileLock {
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the lock is free; `None` if `cancelled` became true first.
    /// `waiting` is called once if there is a need to wait.
    ///
    /// The lock is tried again and again, because a blocking `flock(2)` goes on
    /// after a signal whose handler was installed with `SA_RESTART`.
    pub fn acquire(
        path: &Path,
        waiting: impl FnOnce(),
        cancelled: impl Fn() -> bool,
    ) -> io::Result<Option<Self>> {
        if let Some(lock) = Self::try_acquire(path)? {
            return Ok(Some(lock));
        }
        waiting();
        while !cancelled() {
            std::thread::sleep(RETRY_INTERVAL);
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    /// Waits until the lock is free, for locks that are held for moments only.
    pub fn acquire_brief(path: &Path) -> io::Result<Self> {
        loop {
            let file = open_lock_file(path)?;
            flock_retrying(&file, FlockOperation::LockExclusive)?;
            if let Some(lock) = Self::confirm(path, file)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock, or `None` if another process (or another part of this
    /// one) holds it.
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = open_lock_file(path)?;
            match flock_retrying(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            if let Some(lock) = Self::confirm(path, file)? {
                return Ok(Some(lock));
            }
        }
    }

    /// Puts a new file that holds `content` in the place of this lock's, at once, and
    /// goes on with the lock on that: a reader finds the one content or the other. Until
    /// then the file is at `temporary`, in the same directory, which nobody else may
    /// use; what was left there goes, and so does this one if it cannot be written.
    pub fn replace(&mut self, temporary: &Path, content: &[u8]) -> io::Result<()> {
        let mut new = Self::acquire_brief(temporary)?;
        new.file.set_len(0)?;
        new.file.write_all(content)?;
        std::fs::rename(temporary, &self.path)?;
        // With the old file nothing is removed: its name is the new one's.
        std::mem::swap(&mut self.file, &mut new.file);
        Ok(())
    }

    /// Empties the file.
    pub fn truncate(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Adds to the file. Who reads it meanwhile may find a part.
    pub fn append(&mut self, content: &[u8]) -> io::Result<()> {
        self.file.write_all(content)
    }

    /// Removes the files in `directory` that dead processes left. They do no harm
    /// but to grow in number.
    pub fn remove_stale(directory: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            // What is no file is no lock either, and nobody's to remove.
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                // Taking it and letting go of it removes it.
                Self::try_acquire(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The holder before removed the file while we waited: then the lock is on a
    /// file that no one else will find, and we try again on the one of now.
    fn confirm(path: &Path, file: File) -> io::Result<Option<Self>> {
        let locked = file.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(named) if named.ino() == locked.ino() && named.dev() == locked.dev() => {
                Ok(Some(Self {
                    path: path.to_owned(),
                    file,
                }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // While the lock is still held, so that nobody else's is removed. A file
        // that stays behind does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open_lock_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?))
}

/// `flock` that a signal does not end.
pub(super) fn flock_retrying(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_held_lock_is_not_given_again_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(!path.exists());
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_held_file_is_replaced_whole_and_stays_held() {
        let directory = tempfile::tempdir().unwrap();
        let [path, temporary] = ["lock", "new"].map(|name| directory.path().join(name));
        std::fs::write(&temporary, "left behind by a process that died").unwrap();
        let mut held = FileLock::try_acquire(&path).unwrap().unwrap();
        let mut reader = None;
        for content in ["one", "two"] {
            held.replace(&temporary, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert!(FileLock::try_acquire(&path).unwrap().is_none());
            assert!(!temporary.exists());
            reader.get_or_insert_with(|| File::open(&path).unwrap());
        }
        // Who had it open before reads all of what was there.
        assert_eq!(io::read_to_string(reader.unwrap()).unwrap(), "one");
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn nothing_stays_of_a_file_that_cannot_take_the_place_of_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let [path, temporary] = ["lock", "new"].map(|name| directory.path().join(name));
        let mut held = FileLock::try_acquire(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        held.replace(&temporary, b"x").unwrap_err();
        assert!(!temporary.exists());
    }

    #[test]
    fn a_file_left_behind_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        std::fs::write(&path, "").unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn stale_files_are_removed_and_held_ones_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let held = directory.path().join("held");
        let _lock = FileLock::try_acquire(&held).unwrap().unwrap();
        let stale = directory.path().join("stale");
        std::fs::write(&stale, "").unwrap();
        let foreign = directory.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        FileLock::remove_stale(directory.path()).unwrap();
        assert!(held.exists() && !stale.exists() && foreign.exists());
    }

    #[test]
    fn waiting_is_announced_and_can_be_cancelled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let _held = FileLock::try_acquire(&path).unwrap().unwrap();
        let mut announced = false;
        let outcome = FileLock::acquire(&path, || announced = true, || true).unwrap();
        assert!(outcome.is_none() && announced);
    }

    #[test]
    fn only_one_at_a_time_holds_it_though_its_file_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let holders = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _lock = FileLock::acquire_brief(&path).unwrap();
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        holders.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
