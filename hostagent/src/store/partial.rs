//! Blobs that are not all here yet.
//!
//! ```text
//! partial/HASH/data        the blob's length, with holes
//!             /outboard    its hash tree, whole
//!             /present     a bit for each group of 16 KiB that is in `data`
//! ```
//!
//! Whatever is written is verified before. `present` is replaced now and then, after
//! `data` was brought to disk: what a crash loses of it is fetched again. Several
//! processes may fill one blob: they write the same bytes. When nothing is missing it is
//! renamed into its place among the blobs; who has its files open goes on with them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use outboard::{GROUP_BYTES, SPAN_BYTES, Span, Tree};

use super::blob::{BlobIdentity, DATA, OUTBOARD};
use super::blobs::BlobError;
use super::durable::{publish, write_file};
use super::{Store, StoreError};

const PRESENT: &str = "present";

/// A blob that is being filled.
#[derive(Debug)]
pub struct PartialBlob {
    identity: BlobIdentity,
    directory: PathBuf,
    data: File,
    outboard: File,
    present: Mutex<Present>,
}

#[derive(Debug)]
struct Present {
    /// A bit for each group.
    groups: Vec<u8>,
    missing: u64,
    /// What is not in the file `present` yet.
    unsaved: u64,
}

impl Store {
    /// Opens a blob to be filled; makes it if it is not there, or is of another length, with
    /// the hash tree that `outboard` writes to a file. All of that is verified.
    pub fn partial<E: From<StoreError>>(
        &self,
        identity: BlobIdentity,
        outboard: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<PartialBlob, E> {
        let directory = self.partial_directory(identity);
        let failed = |error| self.io(format!("opening part of blob {}", identity.hash), error);
        match PartialBlob::open(identity, directory.clone()) {
            Ok(partial) => return Ok(partial),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.drop_partial(identity.hash)?;
            }
            Err(error) => return Err(failed(error).into()),
        }
        let staging = self.scratch()?;
        let made = staging.path().join("partial");
        std::fs::create_dir(&made).map_err(failed)?;
        let tree = File::create_new(made.join(OUTBOARD)).map_err(failed)?;
        outboard(&tree)?;
        tree.sync_all().map_err(failed)?;
        let data = File::create_new(made.join(DATA)).map_err(failed)?;
        data.set_len(identity.bytes)
            .and_then(|()| data.sync_all())
            .map_err(failed)?;
        // Whoever relies on it finds nothing that cannot be filled.
        PartialBlob::open(identity, made.clone())
            .map_err(failed)?
            .check()
            .map_err(|source| StoreError::Blob {
                what: format!("the hash tree that was fetched for blob {}", identity.hash),
                source,
            })?;
        match publish(&made, &directory) {
            // Somebody else was quicker.
            Err(_) if directory.exists() => {}
            outcome => outcome.map_err(failed)?,
        }
        PartialBlob::open(identity, directory).map_err(|error| failed(error).into())
    }

    /// Reads what is here of a blob and forgets what of it is wrong, so that it is fetched
    /// again; all of it, if its hash tree is wrong. Returns whether anything was.
    pub fn mend_partial(&self, partial: &PartialBlob) -> Result<bool, StoreError> {
        let hash = partial.identity.hash;
        match partial.check() {
            Ok(0) => Ok(false),
            Ok(_) => self.save_partial(partial).map(|_| true),
            Err(error) if error.is_corruption() => self.drop_partial(hash).map(|()| true),
            Err(error) => Err(self.io(
                format!("reading part of blob {hash}"),
                io::Error::other(error),
            )),
        }
    }

    /// The blobs that are here in part. One that cannot be used is dropped.
    pub(super) fn partial_blobs(&self) -> Result<Vec<PartialBlob>, StoreError> {
        let failed = |error| self.io("reading the partial blobs", error);
        let mut partials = Vec::new();
        for entry in std::fs::read_dir(self.partials()).map_err(failed)? {
            let directory = entry.map_err(failed)?.path();
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            let Some(hash) = outboard::BlobHash::from_hex(&name) else {
                continue;
            };
            let bytes = match directory.join(DATA).metadata() {
                Ok(metadata) => metadata.len(),
                Err(_) => 0,
            };
            match PartialBlob::open(BlobIdentity { hash, bytes }, directory) {
                Ok(partial) => partials.push(partial),
                // Complete now, or collected.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.drop_partial(hash)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(partials)
    }

    fn drop_partial(&self, hash: outboard::BlobHash) -> Result<(), StoreError> {
        let staging = self.scratch()?;
        let directory = self.partials().join(hash.hex());
        match std::fs::rename(directory, staging.path().join("dropped")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.io(format!("dropping part of blob {hash}"), error))
            }
            _ => Ok(()),
        }
    }

    /// Saves what is known to be there; puts the blob in its place if nothing is missing,
    /// and returns whether it is there now.
    pub fn save_partial(&self, partial: &PartialBlob) -> Result<bool, StoreError> {
        let hash = partial.identity.hash;
        let failed = |error| self.io(format!("keeping part of blob {hash}"), error);
        let place = self.blob_directory(hash);
        if place.exists() {
            return Ok(true);
        }
        let (groups, missing, saved) = {
            let present = partial.present();
            if present.unsaved == 0 && present.missing > 0 {
                return Ok(false);
            }
            (present.groups.clone(), present.missing, present.unsaved)
        };
        partial.data.sync_data().map_err(failed)?;
        // What was written meanwhile is for the next time.
        {
            let mut present = partial.present();
            present.unsaved = present.unsaved.saturating_sub(saved);
        }
        let in_its_place = partial.directory.join(PRESENT);
        if missing > 0 {
            let staging = self.scratch()?;
            let part = staging.path().join(PRESENT);
            let saved = write_file(&part, &groups).and_then(|()| publish(&part, &in_its_place));
            return match saved {
                // Filled by somebody else, or collected.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(place.exists()),
                saved => saved.map(|()| false).map_err(failed),
            };
        }
        let _ = std::fs::remove_file(in_its_place);
        match publish(&partial.directory, &place) {
            Err(_) if place.exists() => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            outcome => outcome.map(|()| true).map_err(failed),
        }
    }

    fn partial_directory(&self, identity: BlobIdentity) -> PathBuf {
        self.partials().join(identity.hash.hex())
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }
}

impl PartialBlob {
    fn open(identity: BlobIdentity, directory: PathBuf) -> io::Result<Self> {
        let data = File::options()
            .read(true)
            .write(true)
            .open(directory.join(DATA))?;
        let outboard = File::open(directory.join(OUTBOARD))?;
        let geometry = Tree::new(identity.hash, identity.bytes).geometry();
        if data.metadata()?.len() != identity.bytes
            || outboard.metadata()?.len() != geometry.outboard_bytes()
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let count = geometry.groups();
        let bytes = usize::try_from(count.div_ceil(8)).unwrap_or(usize::MAX);
        let groups = match std::fs::read(directory.join(PRESENT)) {
            // One of another length says nothing.
            Ok(groups) if groups.len() == bytes => groups,
            _ => vec![0; bytes],
        };
        let missing = (0..count).filter(|group| !has(&groups, *group)).count() as u64;
        Ok(Self {
            identity,
            directory,
            data,
            outboard,
            present: Mutex::new(Present {
                groups,
                missing,
                unsaved: 0,
            }),
        })
    }

    /// What it will be.
    pub fn identity(&self) -> BlobIdentity {
        self.identity
    }

    /// Its files, open for reading only: data and hash tree.
    pub fn files(&self) -> io::Result<(File, File)> {
        // Wherever they are now.
        let again = |file: &File| {
            use std::os::fd::AsRawFd;
            File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        };
        Ok((again(&self.data)?, again(&self.outboard)?))
    }

    fn present(&self) -> std::sync::MutexGuard<'_, Present> {
        // Each change is one assignment after the other, none of which panics.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree(&self) -> Tree {
        Tree::new(self.identity.hash, self.identity.bytes)
    }

    /// How many groups it has.
    pub fn groups(&self) -> u64 {
        self.tree().geometry().groups()
    }

    /// How many of them are missing.
    pub fn missing(&self) -> u64 {
        self.present().missing
    }

    /// The first missing group in `groups`, and how many from there on are missing, at most
    /// `most`.
    pub fn next_missing(&self, groups: std::ops::Range<u64>, most: u64) -> Option<(u64, u64)> {
        let present = self.present();
        let end = groups.end.min(self.groups());
        let first = (groups.start..end).find(|group| !has(&present.groups, *group))?;
        let end = end.min(first.saturating_add(most));
        let last = (first..end).find(|group| has(&present.groups, *group));
        Some((first, last.unwrap_or(end) - first))
    }

    /// Verifies the hash tree and the groups that are here. Those that are wrong are missing
    /// from now on; returns how many they are. A wrong tree is the error.
    pub fn check(&self) -> Result<u64, BlobError> {
        let hash = self.identity.hash;
        let geometry = self.tree().geometry();
        let mut wrong = 0;
        let mut bytes = vec![0; GROUP_BYTES as usize];
        for index in 0..geometry.spans() {
            let span = self.span(index)?;
            let first = span.first_group();
            let end = (first + SPAN_BYTES / GROUP_BYTES).min(geometry.groups());
            for group in first..end {
                if !has(&self.present().groups, group) {
                    continue;
                }
                let bytes = &mut bytes[..geometry.group_bytes(group) as usize];
                let offset = group * GROUP_BYTES;
                self.data
                    .read_exact_at(bytes, offset)
                    .map_err(|source| BlobError::Read {
                        hash,
                        offset,
                        source,
                    })?;
                if !span.verify(group, bytes) {
                    let mut present = self.present();
                    present.groups[(group / 8) as usize] &= !(1 << (group % 8));
                    present.missing += 1;
                    present.unsaved += 1;
                    wrong += 1;
                }
            }
        }
        Ok(wrong)
    }

    fn span(&self, index: u64) -> Result<Span, BlobError> {
        let read = |buffer: &mut [u8], offset| self.outboard.read_exact_at(buffer, offset);
        Ok(self.tree().span(index, read)?)
    }

    /// Writes groups from `first` on, all of each, once they are verified.
    pub fn write(&self, first: u64, bytes: &[u8]) -> Result<(), BlobError> {
        let hash = self.identity.hash;
        let geometry = self.tree().geometry();
        let mut known: Option<(u64, Span)> = None;
        for (piece, group) in bytes.chunks(GROUP_BYTES as usize).zip(first..) {
            let index = group * GROUP_BYTES / SPAN_BYTES;
            let span = match known.take() {
                Some((number, span)) if number == index => span,
                _ => self.span(index)?,
            };
            let (_, span) = known.insert((index, span));
            let whole = piece.len() as u64 == geometry.group_bytes(group);
            if !whole || !span.verify(group, piece) {
                return Err(BlobError::Corrupt {
                    hash,
                    offset: group * GROUP_BYTES,
                    length: piece.len() as u64,
                });
            }
        }
        let offset = first * GROUP_BYTES;
        let written = self.data.write_all_at(bytes, offset);
        written.map_err(|source| BlobError::Write {
            hash,
            offset,
            source,
        })?;
        let mut present = self.present();
        for group in first..first + (bytes.len() as u64).div_ceil(GROUP_BYTES) {
            if !has(&present.groups, group) {
                present.groups[(group / 8) as usize] |= 1 << (group % 8);
                present.missing -= 1;
                present.unsaved += 1;
            }
        }
        Ok(())
    }
}

fn has(groups: &[u8], group: u64) -> bool {
    let byte = groups.get((group / 8) as usize);
    byte.is_some_and(|byte| byte >> (group % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use outboard::{BlobHash, Builder};

    use super::*;

    fn blob(bytes: usize) -> (BlobIdentity, Vec<u8>, Vec<u8>) {
        let content: Vec<u8> = (0..bytes).map(|n| (n / 61 + n % 251) as u8).collect();
        let outboard = tempfile::tempfile().unwrap();
        let mut builder = Builder::new(outboard.try_clone().unwrap());
        for span in content.chunks(SPAN_BYTES as usize) {
            builder.push(span).unwrap();
        }
        builder.finish().unwrap();
        let mut tree = vec![0; outboard.metadata().unwrap().len() as usize];
        outboard.read_exact_at(&mut tree, 0).unwrap();
        let identity = BlobIdentity {
            hash: BlobHash::of(&content),
            bytes: bytes as u64,
        };
        (identity, content, tree)
    }

    fn open(store: &Store, identity: BlobIdentity, tree: &[u8]) -> PartialBlob {
        try_open(store, identity, tree).unwrap()
    }

    fn try_open(
        store: &Store,
        identity: BlobIdentity,
        tree: &[u8],
    ) -> Result<PartialBlob, StoreError> {
        store.partial(identity, |file| {
            file.write_all_at(tree, 0).unwrap();
            Ok(())
        })
    }

    #[test]
    fn a_blob_is_filled_in_any_order_and_then_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (identity, content, tree) = blob(100_000);
        let partial = open(&store, identity, &tree);
        assert_eq!((partial.groups(), partial.missing()), (7, 7));
        assert_eq!(partial.next_missing(2..100, 3), Some((2, 3)));
        partial.write(5, &content[5 << 14..]).unwrap();
        partial.write(1, &content[1 << 14..2 << 14]).unwrap();
        assert_eq!(partial.next_missing(1..100, 100), Some((2, 3)));
        assert_eq!(partial.next_missing(5..7, 100), None);
        assert!(!store.save_partial(&partial).unwrap());
        drop(partial);

        // What was saved is known to the next one.
        let partial = open(&store, identity, b"not asked for");
        assert_eq!(partial.missing(), 4);
        let (data, _) = partial.files().unwrap();
        partial.write(0, &content[..5 << 14]).unwrap();
        assert!(store.save_partial(&partial).unwrap());
        let whole = store.blob(identity, || "it".to_owned()).unwrap();
        whole.read_all(|_| true).unwrap();
        assert!(store.partial_blobs().unwrap().is_empty());
        let mut bytes = vec![0; content.len()];
        data.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content);
        // The slower of two that fill it.
        assert!(store.save_partial(&partial).unwrap());
    }

    #[test]
    fn nothing_wrong_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (identity, content, tree) = blob(100_000);
        let partial = open(&store, identity, &tree);
        let mut wrong = content[..1 << 15].to_vec();
        wrong[20_000] ^= 1;
        assert!(partial.write(0, &wrong).unwrap_err().is_corruption());
        assert!(
            partial
                .write(1, &content[..1 << 14])
                .unwrap_err()
                .is_corruption()
        );
        assert!(
            partial
                .write(0, &content[..100])
                .unwrap_err()
                .is_corruption()
        );
        partial.write(7, &content[..1 << 14]).unwrap_err();
        assert_eq!(partial.missing(), 7);
        let (data, _) = partial.files().unwrap();
        let mut bytes = vec![1; 1 << 14];
        data.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_wrong_hash_tree_verifies_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (identity, content, mut tree) = blob(100_000);
        tree[10] ^= 1;
        assert!(try_open(&store, identity, &tree).unwrap_err().is_damage());
        try_open(&store, blob(200_000).0, &[0; 64]).unwrap_err();
        assert!(store.partial_blobs().unwrap().is_empty());

        // One that goes wrong later is dropped, with all that it would verify.
        tree[10] ^= 1;
        let partial = open(&store, identity, &tree);
        let place = store.partials().join(identity.hash.hex()).join(OUTBOARD);
        tree[10] ^= 1;
        std::fs::write(place, &tree).unwrap();
        assert!(
            partial
                .write(0, &content[..1 << 14])
                .unwrap_err()
                .is_corruption()
        );
        assert!(store.mend_partial(&partial).unwrap());
        assert!(store.partial_blobs().unwrap().is_empty());
    }

    #[test]
    fn what_has_gone_wrong_is_missing_again_and_only_that() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (identity, content, tree) = blob(100_000);
        let partial = open(&store, identity, &tree);
        partial.write(0, &content[..4 << 14]).unwrap();
        assert!(!store.mend_partial(&partial).unwrap());
        partial.data.write_all_at(&[7], (2 << 14) + 5).unwrap();
        assert!(store.mend_partial(&partial).unwrap());
        assert_eq!(partial.next_missing(0..7, 7), Some((2, 1)));
        drop(partial);
        let partial = open(&store, identity, b"not asked for");
        assert_eq!(partial.missing(), 4);
        partial.write(2, &content[2 << 14..]).unwrap();
        assert!(store.save_partial(&partial).unwrap());
    }

    #[test]
    fn a_blob_that_was_begun_with_another_length_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (identity, content, tree) = blob(100_000);
        let place = store.partials().join(identity.hash.hex());
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join(DATA), b"short").unwrap();
        std::fs::write(place.join(OUTBOARD), b"").unwrap();
        let partial = open(&store, identity, &tree);
        partial.write(0, &content).unwrap();
        assert!(store.save_partial(&partial).unwrap());
    }
}
