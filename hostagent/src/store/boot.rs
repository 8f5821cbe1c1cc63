//! Guest kernels and initrds: files of this host's that become blobs.
//!
//! A guest boots from blobs of the store only, which its VMM verifies as it loads them, as
//! it does disks. What mote is installed with is copied into the store when it is first
//! booted; where it says its hash, no more is read of it after that. What is booted unless
//! the user says otherwise is recorded, so that it is not collected with what images leave.

use std::fs::File;
use std::io::{self, Seek};
use std::path::PathBuf;

use outboard::BlobHash;
use serde::{Deserialize, Serialize};

use super::blob::{BlobIdentity, BlobWriter};
use super::blobs::Blob;
use super::durable::Unsynced;
use super::leases::Lease;
use super::record::usable_record;
use super::{Store, StoreError};

/// What guests boot unless the user says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootRecord {
    /// The kernel.
    pub kernel: BlobIdentity,
    /// The initramfs with the init.
    pub initrd: BlobIdentity,
}

/// A file of this host's that a guest is to boot.
#[derive(Debug)]
pub struct BootFile {
    /// Such as `/usr/share/mote/vmlinux`.
    pub what: String,
    /// Open for reading. Its offset is moved.
    pub file: File,
    /// What it is, where that is known without reading it.
    pub identity: Option<BlobIdentity>,
}

impl BootRecord {
    /// Its blobs.
    pub(super) fn hashes(&self) -> [BlobHash; 2] {
        [self.kernel.hash, self.initrd.hash]
    }
}

impl Store {
    /// The blob with all that `boot` has, held by `lease`. If it is not there, or is damaged,
    /// the file is copied.
    pub fn obtain_boot(&self, boot: &mut BootFile, lease: &Lease) -> Result<Blob, StoreError> {
        let action = || format!("taking in {}", boot.what);
        let identity = match boot.identity {
            Some(identity) => identity,
            None => identify(&mut boot.file).map_err(|error| self.io(action(), error))?,
        };
        match self.hold_blob(identity, lease) {
            Err(error) if error.is_damage() => {}
            held => return held,
        }
        let found = self.copy_in(&mut boot.file, identity, lease, action)?;
        if found != identity {
            if boot.identity.is_none() {
                let changed = io::Error::other("it has changed while it was read");
                return Err(self.io(action(), changed));
            }
            return Err(StoreError::OtherFile {
                what: boot.what.clone(),
                expected: identity,
                found,
            });
        }
        self.hold_blob(identity, lease)
    }

    fn hold_blob(&self, identity: BlobIdentity, lease: &Lease) -> Result<Blob, StoreError> {
        self.hold(lease, || {
            let blob = self.blob(identity, || format!("blob {}", identity.hash))?;
            Ok((blob, vec![identity.hash]))
        })
    }

    /// Copies a file into the store if it is what it should be; returns what it is.
    fn copy_in(
        &self,
        file: &mut File,
        expected: BlobIdentity,
        lease: &Lease,
        action: impl Fn() -> String,
    ) -> Result<BlobIdentity, StoreError> {
        let failed = |error| self.io(action(), error);
        let staging = self.scratch()?;
        let made = staging.path().join("blob");
        let mut copy = || {
            std::fs::create_dir(&made)?;
            let mut writer = BlobWriter::create(&made)?;
            file.rewind()?;
            io::copy(file, &mut writer)?;
            let mut unsynced = Unsynced::default();
            let found = writer.finish(&mut unsynced)?;
            unsynced.sync()?;
            Ok(found)
        };
        let found = copy().map_err(failed)?;
        if found == expected {
            self.hold(lease, || Ok::<_, StoreError>(((), vec![found.hash])))?;
            self.publish_blob(&made, found)?;
        }
        Ok(found)
    }

    /// Records what guests boot unless the user says otherwise.
    pub fn record_boot(&self, boot: &BootRecord) -> Result<(), StoreError> {
        if self.boot_record()? == Some(*boot) {
            return Ok(());
        }
        let action = || "recording the guest kernel".to_owned();
        self.write_record(&self.boot_path(), boot, action)
    }

    /// What was recorded last, if it was.
    pub fn boot_record(&self) -> Result<Option<BootRecord>, StoreError> {
        usable_record(self, self.boot_path())
    }

    fn boot_path(&self) -> PathBuf {
        self.root.join("boot.json")
    }
}

/// What a file is, by reading it.
fn identify(file: &mut File) -> io::Result<BlobIdentity> {
    file.rewind()?;
    let (hash, bytes) = BlobHash::of_reader(file)?;
    Ok(BlobIdentity { hash, bytes })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(content: &[u8], identity: Option<BlobIdentity>) -> BootFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        BootFile {
            what: "/the/kernel".to_owned(),
            file,
            identity,
        }
    }

    fn identity(content: &[u8]) -> BlobIdentity {
        BlobIdentity {
            hash: BlobHash::of(content),
            bytes: content.len() as u64,
        }
    }

    fn content(blob: &Blob) -> Vec<u8> {
        let mut content = Vec::new();
        let all = blob.read_all(|bytes| {
            content.extend_from_slice(bytes);
            true
        });
        all.unwrap();
        content
    }

    #[test]
    fn a_file_becomes_a_blob_once_and_stays_while_it_is_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let [kernel, initrd] = [vec![7; 40_000], vec![9; 10]];
        {
            let lease = store.lease().unwrap();
            for bytes in [&kernel, &initrd] {
                let blob = store.obtain_boot(&mut file(bytes, None), &lease).unwrap();
                assert_eq!(blob.identity, identity(bytes));
                assert_eq!(&content(&blob), bytes);
            }
            // Nothing but the store is read where it says what it is.
            let mut known = file(b"", Some(identity(&kernel)));
            let blob = store.obtain_boot(&mut known, &lease).unwrap();
            assert_eq!(content(&blob), kernel);
            assert_eq!(store.collect().unwrap().blobs, 0);
        }
        let record = BootRecord {
            kernel: identity(&kernel),
            initrd: identity(&initrd),
        };
        store.record_boot(&record).unwrap();
        assert_eq!(store.collect().unwrap().blobs, 0);
        let other = BootRecord {
            kernel: identity(&initrd),
            ..record
        };
        store.record_boot(&other).unwrap();
        assert_eq!(store.boot_record().unwrap(), Some(other));
        assert_eq!(store.collect().unwrap().blobs, 1);
    }

    #[test]
    fn a_file_that_is_not_what_it_says_is_refused_and_nothing_of_it_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let lease = store.lease().unwrap();
        let mut wrong = file(b"other", Some(identity(b"this")));
        let error = store.obtain_boot(&mut wrong, &lease).unwrap_err();
        assert!(matches!(error, StoreError::OtherFile { .. }), "{error}");
        assert!(error.to_string().starts_with("/the/kernel is "), "{error}");
        let kept = std::fs::read_dir(directory.path().join("blobs")).unwrap();
        assert_eq!(kept.count(), 0);
    }

    #[test]
    fn a_blob_that_was_quarantined_is_copied_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let lease = store.lease().unwrap();
        let mut kernel = file(b"kernel", Some(identity(b"kernel")));
        store.obtain_boot(&mut kernel, &lease).unwrap();
        store.quarantine(identity(b"kernel").hash).unwrap();
        let blob = store.obtain_boot(&mut kernel, &lease).unwrap();
        assert_eq!(content(&blob), b"kernel");
    }
}
