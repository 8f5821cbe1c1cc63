//! `images.json` and `images.copy.json`: the same record twice, replaced as a whole.
//!
//! Nothing else says which names there are, so what a failing disk does to one of the files
//! must not take them away. Both are on disk before either gets its name. The first is the
//! one that counts; the copy is read where the first cannot be. After a crash between the two
//! renames the copy is older, and who then has only that has lost the last change.

use std::error::Error;
use std::io;

use super::durable::{Unsynced, sync_directory};
use super::lock::FileLock;
use super::record::{encode, read_record};
use super::records::Records;
use super::verify::{Fate, Wrong};
use super::{Store, StoreError};

/// The one that counts, and its copy.
const NAMES: [&str; 2] = ["images.json", "images.copy.json"];
/// What is attempted when one of them is not what was written.
const MENDING: &str = "mending the list of images";

impl Store {
    pub(super) fn read_records(&self) -> Result<Records, StoreError> {
        match self.read_copy(NAMES[0]) {
            Ok(Some(records)) => Ok(records),
            first => best([first, self.read_copy(NAMES[1])]),
        }
    }

    /// Changes the records while nobody else does. What `unsynced` has is on disk before.
    pub(super) fn change_records<T>(
        &self,
        action: &str,
        mut unsynced: Unsynced,
        change: impl FnOnce(&mut Records) -> T,
    ) -> Result<T, StoreError> {
        let failed = |source| self.io(action, source);
        let _lock = self.lock_records().map_err(failed)?;
        let copies = NAMES.map(|name| self.read_copy(name));
        let are_alike = are_alike(&copies);
        let before = best(copies)?;
        let mut records = before.clone();
        let outcome = change(&mut records);
        if records == before && are_alike {
            // Whoever has recorded that may not have come to bring it to disk.
            let synced = unsynced.sync().and_then(|()| sync_directory(&self.root));
            return synced.map(|()| outcome).map_err(failed);
        }
        self.replace_records(&records, action, unsynced)?;
        Ok(outcome)
    }

    /// Reads both files, and makes one that is not what was written again from the other. If
    /// neither is, both are put aside, and there are no images any more.
    pub(super) fn verify_records(&self) -> Result<Vec<Wrong>, StoreError> {
        let _lock = self
            .lock_records()
            .map_err(|source| self.io(MENDING, source))?;
        let copies = NAMES.map(|name| self.read_copy(name));
        if are_alike(&copies) {
            return Ok(Vec::new());
        }
        // One that is older, or not there, is what a crash has left, no damage.
        let problems = copies
            .each_ref()
            .map(|copy| copy.as_ref().err().map(reason));
        let (fate, remedy) = match best(copies) {
            Ok(records) => {
                self.replace_records(&records, MENDING, Unsynced::default())?;
                (Fate::Mended, "it is made again from the other copy")
            }
            Err(StoreError::Record { .. }) => {
                self.put_records_aside()?;
                (
                    Fate::Lost,
                    "it is in quarantine; `mote load` and `mote pull` bring images back",
                )
            }
            Err(error) => return Err(error),
        };
        let wrong = NAMES.iter().zip(problems).filter_map(|(name, problem)| {
            Some(Wrong {
                what: (*name).to_owned(),
                problem: format!("{}; {remedy}", problem?),
                fate,
            })
        });
        Ok(wrong.collect())
    }

    fn lock_records(&self) -> io::Result<FileLock> {
        FileLock::acquire_brief(&self.locks().join("images"))
    }

    fn read_copy(&self, name: &str) -> FileCopy {
        read_record(self, self.root.join(name), || name.to_owned())
    }

    fn replace_records(
        &self,
        records: &Records,
        action: &str,
        mut unsynced: Unsynced,
    ) -> Result<(), StoreError> {
        let failed = |source| self.io(action, source);
        let bytes = encode(records).map_err(failed)?;
        let (staging, written) = self.in_reserve(|| {
            let staging = self.scratch()?;
            let mut written = Unsynced::default();
            for name in NAMES {
                let copy = staging.path().join(name);
                written.write(&copy, &bytes).map_err(failed)?;
            }
            Ok((staging, written))
        })?;
        unsynced.extend(written);
        let mut replace = || {
            unsynced.sync()?;
            for name in NAMES {
                std::fs::rename(staging.path().join(name), self.root.join(name))?;
            }
            sync_directory(&self.root)
        };
        replace().map_err(failed)
    }

    fn put_records_aside(&self) -> Result<(), StoreError> {
        let put = |name: &str| {
            let kept = self.quarantined().join(name);
            std::fs::create_dir_all(&kept)?;
            match std::fs::rename(self.root.join(name), kept.join("data")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                renamed => renamed,
            }
        };
        NAMES
            .into_iter()
            .try_for_each(put)
            .and_then(|()| sync_directory(&self.root))
            .map_err(|source| self.io(MENDING, source))
    }
}

/// What a file says; none if it is not there.
type FileCopy = Result<Option<Records>, StoreError>;

/// What is to be believed: the first, or else the copy.
fn best([first, copy]: [FileCopy; 2]) -> Result<Records, StoreError> {
    match (first, copy) {
        (Ok(Some(records)), _) | (_, Ok(Some(records))) => Ok(records),
        (Ok(None), Ok(None)) => Ok(Records::default()),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn are_alike(copies: &[FileCopy; 2]) -> bool {
    matches!(copies, [Ok(first), Ok(copy)] if first == copy)
}

/// What is wrong, without what the user could do: that is done.
fn reason(error: &StoreError) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), |source| source.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;
    use crate::store::records::tests::{image, record};

    fn ids(store: &Store) -> Result<Vec<Digest>, StoreError> {
        let images = store.images()?;
        Ok(images.iter().map(|image| image.id).collect())
    }

    #[test]
    fn one_damaged_or_lost_copy_loses_no_image_and_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let one = image("one", &["demo:v1"]);
        record(&store, &one);
        let paths = NAMES.map(|name| store.root().join(name));
        let written = std::fs::read(&paths[0]).unwrap();
        assert_eq!(std::fs::read(&paths[1]).unwrap(), written);
        for (name, path) in NAMES.iter().zip(&paths) {
            let name_at = written
                .windows(4)
                .position(|bytes| bytes == b"demo")
                .unwrap();
            let mut changed = written.clone();
            changed[name_at] ^= 1;
            for damage in [Some(&changed[..]), Some(b"{"), Some(b""), None] {
                match damage {
                    Some(bytes) => std::fs::write(path, bytes).unwrap(),
                    None => std::fs::remove_file(path).unwrap(),
                }
                assert_eq!(store.images().unwrap()[0].names, one.names, "{name}");
                let wrong = store.verify_records().unwrap();
                let told: Vec<_> = wrong.iter().map(|wrong| &*wrong.what).collect();
                assert_eq!(told, damage.map_or(vec![], |_| vec![*name]));
                for Wrong { problem, fate, .. } in wrong {
                    assert_eq!(fate, Fate::Mended);
                    assert!(problem.contains("made again"), "{problem}");
                }
                assert_eq!(std::fs::read(path).unwrap(), written, "{name}");
                assert!(store.verify_records().unwrap().is_empty());
            }
        }
    }

    #[test]
    fn a_change_after_damage_starts_from_the_copy_and_writes_both() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        record(&store, &image("one", &[]));
        std::fs::write(store.root().join(NAMES[0]), "damaged").unwrap();
        record(&store, &image("two", &[]));
        assert_eq!(ids(&store).unwrap().len(), 2);
        assert!(store.verify_records().unwrap().is_empty());
    }

    #[test]
    fn a_copy_that_a_crash_has_left_behind_is_brought_up_to_date() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let [first, copy] = NAMES.map(|name| store.root().join(name));
        let one = image("one", &["demo:v1"]);
        record(&store, &image("other", &[]));
        let older = std::fs::read(&copy).unwrap();
        record(&store, &one);
        for verify in [true, false] {
            std::fs::write(&copy, &older).unwrap();
            assert_eq!(ids(&store).unwrap().len(), 2);
            match verify {
                true => assert_eq!(store.verify_records().unwrap(), []),
                false => assert!(store.tag(one.id, &one.names[0]).unwrap()),
            }
            assert_eq!(
                std::fs::read(&first).unwrap(),
                std::fs::read(&copy).unwrap()
            );
        }
    }

    #[test]
    fn two_damaged_copies_are_an_error_until_they_are_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.verify_records().unwrap().is_empty());
        let one = image("one", &["demo:v1"]);
        record(&store, &one);
        for name in NAMES {
            std::fs::write(store.root().join(name), "{").unwrap();
        }
        for outcome in [
            ids(&store).map(drop),
            store.tag(one.id, &one.names[0]).map(drop),
            store.collect().map(drop),
        ] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, StoreError::Record { .. }), "{error}");
            assert!(error.to_string().contains("mote store verify"), "{error}");
        }
        let wrong = store.verify_records().unwrap();
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        let lost = wrong.iter().filter(|wrong| wrong.fate == Fate::Lost);
        assert_eq!(lost.count(), 2, "{wrong:?}");
        assert!(wrong[0].problem.contains("quarantine"), "{wrong:?}");
        assert!(ids(&store).unwrap().is_empty());
        record(&store, &one);
        assert_eq!(ids(&store).unwrap(), [one.id]);
        assert!(store.verify_records().unwrap().is_empty());
    }
}
