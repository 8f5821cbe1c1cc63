//! Leases: what a process needs of the store for as long as it lives.
//!
//! A lease is a file that its holder keeps locked, with the hash of a blob on each line. A
//! line may be in part, where the disk was full.
//! What one that lives names is not collected, whatever the images say. Whoever looks
//! something up in order to use it does so and adds it to a lease under one lock, which
//! collecting takes too: so nothing is collected between the look and the use.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use outboard::BlobHash;

use super::lock::FileLock;
use super::{Store, StoreError};

/// What this process needs, for all of its threads. Dropping it gives all of that up.
#[derive(Debug)]
pub struct Lease(Mutex<Held>);

#[derive(Debug)]
struct Held {
    file: FileLock,
    blobs: BTreeSet<BlobHash>,
}

impl Store {
    /// A lease that holds nothing yet.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let failed = |source| self.io("taking a lease", source);
        let _gate = self.gate().map_err(failed)?;
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{number}", std::process::id());
            // The process id only makes a collision unlikely.
            let file = FileLock::try_acquire(&self.leases().join(name)).map_err(failed)?;
            if let Some(mut file) = file {
                // What a dead holder of the same name left.
                file.truncate().map_err(failed)?;
                let blobs = BTreeSet::new();
                return Ok(Lease(Mutex::new(Held { file, blobs })));
            }
        }
    }

    /// Looks something up and holds on to the blobs it names.
    pub fn hold<T, E: From<StoreError>>(
        &self,
        lease: &Lease,
        find: impl FnOnce() -> Result<(T, Vec<BlobHash>), E>,
    ) -> Result<T, E> {
        let failed = |source| self.io("extending a lease", source);
        let _gate = self.gate().map_err(failed)?;
        let (found, blobs) = find()?;
        let mut held = lease.0.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in blobs {
            if held.blobs.contains(&blob) {
                continue;
            }
            // What is here can be used on a full disk, too.
            self.in_reserve(|| {
                let line = format!("\n{}\n", blob.hex());
                held.file.append(line.as_bytes()).map_err(failed)
            })?;
            held.blobs.insert(blob);
        }
        Ok(found)
    }

    /// What living processes need; under the gate.
    pub(super) fn leased(&self) -> io::Result<BTreeSet<BlobHash>> {
        self.leased_where(|_| true)
    }

    /// What living processes need if a lease did not hold some blobs; under the gate.
    pub(super) fn leased_without(
        &self,
        lease: &Lease,
        blobs: &BTreeSet<BlobHash>,
    ) -> io::Result<BTreeSet<BlobHash>> {
        let held = lease.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut leased = self.leased_where(|path| path != held.file.path())?;
        leased.extend(held.blobs.difference(blobs));
        Ok(leased)
    }

    fn leased_where(&self, counts: impl Fn(&Path) -> bool) -> io::Result<BTreeSet<BlobHash>> {
        let mut leased = BTreeSet::new();
        for entry in std::fs::read_dir(self.leases())? {
            let path = entry?.path();
            if !counts(&path) {
                continue;
            }
            if FileLock::try_acquire(&path)?.is_some() {
                // Its holder is gone, and so is the file now.
                continue;
            }
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                // Its holder has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            leased.extend(text.lines().filter_map(BlobHash::from_hex));
        }
        Ok(leased)
    }

    /// Held while something is looked up to be used, and while is collected what nobody
    /// uses.
    pub(super) fn gate(&self) -> io::Result<FileLock> {
        FileLock::acquire_brief(&self.locks().join("leases"))
    }

    pub(super) fn leases(&self) -> std::path::PathBuf {
        self.root.join("leases")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_living_process_needs_is_known_until_it_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let [one, two] = [b"one", b"two"].map(|content| BlobHash::of(content));
        let hold = |lease: &Lease, blobs: Vec<BlobHash>| {
            let held = store.hold(lease, || Ok::<_, StoreError>(((), blobs)));
            held.unwrap();
        };
        let lease = store.lease().unwrap();
        let other = store.lease().unwrap();
        hold(&lease, vec![one, one]);
        hold(&other, vec![one]);
        hold(&lease, vec![two, one]);
        assert_eq!(store.leased().unwrap(), BTreeSet::from([one, two]));
        drop(lease);
        assert_eq!(store.leased().unwrap(), BTreeSet::from([one]));
        drop(other);
        assert!(store.leased().unwrap().is_empty());
        std::fs::write(store.leases().join("1-1"), one.hex()).unwrap();
        assert!(store.leased().unwrap().is_empty(), "its holder is gone");
    }

    #[test]
    fn a_look_that_fails_holds_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let lease = store.lease().unwrap();
        let outcome = store.hold(&lease, || {
            let what = "it".to_owned();
            Err::<((), _), _>(StoreError::Missing { what })
        });
        outcome.unwrap_err();
        assert!(store.leased().unwrap().is_empty());
    }
}
