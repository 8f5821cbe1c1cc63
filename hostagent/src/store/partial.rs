//! Blobs that are not all here yet.
//!
//! ```text
//! partial/HASH-BYTES/data        the blob's length, with holes
//!                   /outboard    its hash tree, whole
//!                   /present     a bit for each group of 16 KiB that is in `data`
//! ```
//!
//! A hash tree is verified by the blob's hash, and so is every group, but a length only by
//! the last group. So what claims to be a blob of another length is filled elsewhere: it
//! will never be whole, and is in nobody's way.
//!
//! Whatever is written is verified before. `present` is replaced now and then, after
//! `data` was brought to disk: what a crash loses of it is fetched again. Several
//! processes may fill one blob: they write the same bytes. When nothing is missing it is
//! renamed into its place among the blobs; who has its files open goes on with them.
//!
//! Any process may drop a directory and begin anew while others have it open. So whatever
//! is renamed here is renamed under the gate, and by who has open what is there: a map
//! never comes to stand beside other bytes than those it is of.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use outboard::{BlobHash, GROUP_BYTES, SPAN_BYTES, Span, Tree};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};

use super::blob::{BlobIdentity, DATA, OUTBOARD};
use super::blobs::{BlobError, is_in_the_way};
use super::collect::disk_bytes;
use super::durable::{sync_directory, write_file};
use super::{Store, StoreError};

const PRESENT: &str = "present";

/// A blob that is being filled.
#[derive(Debug)]
pub struct PartialBlob {
    identity: BlobIdentity,
    /// What its files are in, wherever that is now.
    directory: File,
    data: File,
    outboard: File,
    present: Mutex<Present>,
    /// Held while it is saved.
    saving: Mutex<()>,
}

#[derive(Debug)]
struct Present {
    /// A bit for each group.
    groups: Vec<u8>,
    missing: u64,
    /// What is not in the file `present` yet.
    unsaved: u64,
}

/// What of a blob that is here in part was wrong, and is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mended {
    /// Nothing.
    Nothing,
    /// Some groups.
    Groups,
    /// Its hash tree, and so all of it.
    All,
}

impl Store {
    /// Opens a blob to be filled; makes it if it is not there, or cannot be used, with the
    /// hash tree that `outboard` writes to a file. All of that is verified before it takes
    /// the place of what is there: a length that the tree is not of displaces nothing.
    pub fn partial<E: From<StoreError>>(
        &self,
        identity: BlobIdentity,
        outboard: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<PartialBlob, E> {
        let place = self.partial_directory(identity);
        let failed = |error| self.io(format!("opening part of blob {}", identity.hash), error);
        if let Found::Usable(partial) = PartialBlob::find(identity, &place).map_err(failed)? {
            return Ok(partial);
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
            .and_then(|()| sync_directory(&made))
            .map_err(failed)?;
        // Whoever relies on it finds nothing that cannot be filled.
        let Found::Usable(new) = PartialBlob::find(identity, &made).map_err(failed)? else {
            return Err(failed(io::ErrorKind::InvalidData.into()).into());
        };
        new.check().map_err(|source| StoreError::Blob {
            what: format!("the hash tree that was fetched for blob {}", identity.hash),
            source,
        })?;
        {
            let _gate = self.gate().map_err(failed)?;
            match PartialBlob::find(identity, &place).map_err(failed)? {
                // Somebody else was quicker.
                Found::Usable(partial) => return Ok(partial),
                Found::Unusable(_) => std::fs::rename(&place, staging.path().join("before")),
                Found::Nothing => Ok(()),
            }
            .and_then(|()| std::fs::rename(&made, &place))
            .map_err(failed)?;
        }
        sync_directory(&self.partials()).map_err(failed)?;
        Ok(new)
    }

    /// Reads what is here of a blob and forgets what of it is wrong, so that it is fetched
    /// again; all of it, if its hash tree is wrong. Returns whether anything was.
    pub fn mend_partial(&self, partial: &PartialBlob) -> Result<bool, StoreError> {
        let mended = self.mend_by(partial, PartialBlob::check)?;
        Ok(mended != Mended::Nothing)
    }

    /// The same, but reads no more of it than one span, which it must have.
    pub(super) fn mend_partial_span(
        &self,
        partial: &PartialBlob,
        span: u64,
    ) -> Result<Mended, StoreError> {
        self.mend_by(partial, |partial| partial.check_span(span))
    }

    fn mend_by(
        &self,
        partial: &PartialBlob,
        check: impl FnOnce(&PartialBlob) -> Result<u64, BlobError>,
    ) -> Result<Mended, StoreError> {
        let hash = partial.identity.hash;
        match check(partial) {
            Ok(0) => Ok(Mended::Nothing),
            Ok(_) => self.save_partial(partial).map(|_| Mended::Groups),
            Err(error) if error.is_corruption() => self
                .drop_partial(partial.identity, &partial.directory)
                .map(|()| Mended::All),
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
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(identity) = partial_identity(&name) else {
                continue;
            };
            match PartialBlob::find(identity, &path).map_err(failed)? {
                Found::Usable(partial) => partials.push(partial),
                Found::Unusable(directory) => self.drop_partial(identity, &directory)?,
                // Complete now, or collected.
                Found::Nothing => {}
            }
        }
        Ok(partials)
    }

    /// How many bytes of a blob are not here, up to the next whole group.
    pub(super) fn missing_bytes(&self, identity: BlobIdentity) -> u64 {
        if self.blob(identity, String::new).is_ok() {
            return 0;
        }
        let place = self.partial_directory(identity);
        match PartialBlob::find(identity, &place) {
            Ok(Found::Usable(partial)) => identity.bytes.min(partial.missing() * GROUP_BYTES),
            _ => identity.bytes,
        }
    }

    /// Drops what is here of a blob, unless it has been begun anew in another directory than
    /// this one.
    fn drop_partial(&self, identity: BlobIdentity, directory: &File) -> Result<(), StoreError> {
        let failed = |error| self.io(format!("dropping part of blob {}", identity.hash), error);
        let place = self.partial_directory(identity);
        let staging = self.scratch()?;
        let _gate = self.gate().map_err(failed)?;
        match is_at(directory, &place).map_err(failed)? {
            true => std::fs::rename(&place, staging.path().join("dropped")).map_err(failed),
            false => Ok(()),
        }
    }

    /// Saves what is known to be there; puts the blob in its place if nothing is missing,
    /// and returns whether it is there now. If it has been begun anew meanwhile, nothing is
    /// saved: what is known is of other files.
    pub fn save_partial(&self, partial: &PartialBlob) -> Result<bool, StoreError> {
        let identity = partial.identity;
        let failed = |error| self.io(format!("keeping part of blob {}", identity.hash), error);
        let from = self.partial_directory(identity);
        let place = self.blob_directory(identity.hash);
        let is_there = || self.is_damaged(identity).map(|damaged| !damaged);
        // Of two threads that save, the later one knows more.
        let _saving = partial
            .saving
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if is_there()? {
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
        if missing > 0 {
            let staging = self.scratch()?;
            let part = staging.path().join(PRESENT);
            write_file(&part, &groups).map_err(failed)?;
            {
                let _gate = self.gate().map_err(failed)?;
                if !is_at(&partial.directory, &from).map_err(failed)? {
                    return is_there();
                }
                renameat(CWD, &part, &partial.directory, PRESENT)
                    .map_err(|error| failed(error.into()))?;
            }
            partial.directory.sync_all().map_err(failed)?;
            // What was written meanwhile is for the next time.
            let mut present = partial.present();
            present.unsaved = present.unsaved.saturating_sub(saved);
            return Ok(false);
        }
        {
            let _gate = self.gate().map_err(failed)?;
            if !is_at(&partial.directory, &from).map_err(failed)? || is_there()? {
                return is_there();
            }
            // Nobody else puts anything there under the gate but what has it too.
            self.make_room(identity)?;
            match std::fs::rename(&from, &place) {
                Err(error) if is_in_the_way(&error) => return is_there(),
                renamed => renamed.map_err(failed)?,
            }
        }
        // It is of no use there, and does no harm.
        let _ = unlinkat(&partial.directory, PRESENT, AtFlags::empty());
        partial
            .directory
            .sync_all()
            .and_then(|()| sync_directory(&self.blobs()))
            .map_err(failed)?;
        Ok(true)
    }

    /// What is on disk of partial blobs of this hash.
    pub(super) fn partial_disk_bytes(&self, hash: BlobHash) -> u64 {
        let entries = std::fs::read_dir(self.partials());
        let of_it = entries.into_iter().flatten().flatten().filter(|entry| {
            let identity = entry.file_name().to_str().and_then(partial_identity);
            identity.is_some_and(|identity| identity.hash == hash)
        });
        of_it.map(|entry| disk_bytes(&entry.path())).sum()
    }

    pub(super) fn partial_directory(&self, identity: BlobIdentity) -> PathBuf {
        let name = format!("{}-{}", identity.hash.hex(), identity.bytes);
        self.partials().join(name)
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }
}

/// The blob that the directory of this name is filled to become.
pub(super) fn partial_identity(name: &str) -> Option<BlobIdentity> {
    let (hash, bytes) = name.split_once('-')?;
    Some(BlobIdentity {
        hash: BlobHash::from_hex(hash)?,
        bytes: bytes.parse().ok()?,
    })
}

/// What is at the place of a blob that is to be filled.
enum Found {
    /// It.
    Usable(PartialBlob),
    /// A directory that is none of this blob and length, open.
    Unusable(File),
    Nothing,
}

/// Whether an open file or directory is what is at `path`. While it is open no other one can
/// have its number; and who holds the gate finds it there until it lets go.
pub(super) fn is_at(open: &File, path: &Path) -> io::Result<bool> {
    let open = open.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == open.ino() && named.dev() == open.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl PartialBlob {
    /// Looks at `path`. All files are those of one directory, whatever is put there meanwhile.
    fn find(identity: BlobIdentity, path: &Path) -> io::Result<Found> {
        let directory = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            opened => opened?,
        };
        let open = |name: &str, flags: OFlags| {
            let opened = openat(&directory, name, flags | OFlags::CLOEXEC, Mode::empty());
            opened.map(File::from).map_err(io::Error::from)
        };
        let files = open(DATA, OFlags::RDWR).and_then(|data| {
            let outboard = open(OUTBOARD, OFlags::RDONLY)?;
            Ok((data, outboard))
        });
        let (data, outboard) = match files {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Found::Unusable(directory));
            }
            files => files?,
        };
        let geometry = Tree::new(identity.hash, identity.bytes).geometry();
        if data.metadata()?.len() != identity.bytes
            || outboard.metadata()?.len() != geometry.outboard_bytes()
        {
            return Ok(Found::Unusable(directory));
        }
        let count = geometry.groups();
        let bytes = usize::try_from(count.div_ceil(8)).unwrap_or(usize::MAX);
        let mut groups = Vec::new();
        let read = open(PRESENT, OFlags::RDONLY).and_then(|mut file| file.read_to_end(&mut groups));
        // One of another length says nothing.
        if read.is_err() || groups.len() != bytes {
            groups = vec![0; bytes];
        }
        let missing = (0..count).filter(|group| !has(&groups, *group)).count() as u64;
        Ok(Found::Usable(Self {
            identity,
            directory,
            data,
            outboard,
            present: Mutex::new(Present {
                groups,
                missing,
                unsaved: 0,
            }),
            saving: Mutex::new(()),
        }))
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
        let spans = self.tree().geometry().spans();
        (0..spans).try_fold(0, |wrong, index| Ok(wrong + self.check_span(index)?))
    }

    fn check_span(&self, index: u64) -> Result<u64, BlobError> {
        let hash = self.identity.hash;
        let geometry = self.tree().geometry();
        let mut wrong = 0;
        let mut bytes = vec![0; GROUP_BYTES as usize];
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
        // Nothing would be verified, and nothing come of it.
        if bytes.is_empty() {
            return Err(BlobError::Corrupt {
                hash,
                offset: first * GROUP_BYTES,
                length: 0,
            });
        }
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
#[path = "partial_tests.rs"]
mod tests;
