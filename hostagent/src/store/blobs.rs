//! Blobs of the store, and the only way to read them: verified.

use std::borrow::Borrow;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use erofs::image::ReadAt;
use outboard::{BlobHash, GROUP_BYTES, Geometry, SPAN_BYTES, Span, Tree, TreeError};

use super::blob::{BLOCKS, BlobIdentity, DATA, OUTBOARD};
use super::durable::sync_directory;
use super::{Store, StoreError};

/// The groups of a span.
const SPAN_GROUPS: u64 = SPAN_BYTES / GROUP_BYTES;

/// A blob and its hash tree, open for reading.
#[derive(Debug)]
pub struct Blob {
    /// What it is.
    pub identity: BlobIdentity,
    /// Its bytes. Who reads them by this must verify them.
    pub data: File,
    /// Its hash tree; see [`outboard`].
    pub outboard: File,
    /// The values of its blocks, if they are there; see [`outboard`].
    pub blocks: Option<File>,
}

/// Why bytes of a blob cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// They could not be read.
    #[error("blob {hash} cannot be read at byte {offset}")]
    Read {
        /// The blob.
        hash: BlobHash,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// They could not be written.
    #[error("blob {hash} cannot be written at byte {offset}")]
    Write {
        /// The blob.
        hash: BlobHash,
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The hash tree could not be read or is not that of the blob.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The values of its blocks are not those of the blob.
    #[error("the hashes of the blocks of blob {hash} are corrupt at byte {offset}")]
    Blocks {
        /// The blob.
        hash: BlobHash,
        /// Where in their file those of a group begin.
        offset: u64,
    },
    /// They are not those of the blob.
    #[error("blob {hash} is corrupt between bytes {offset} and {}", offset + length)]
    Corrupt {
        /// The blob.
        hash: BlobHash,
        /// Where what is wrong begins.
        offset: u64,
        /// How long the piece is that was verified at once.
        length: u64,
    },
}

impl BlobError {
    /// Whether the blob is there and is another than it should be.
    pub fn is_corruption(&self) -> bool {
        let early_end = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        match self {
            Self::Corrupt { .. } | Self::Blocks { .. } | Self::Tree(TreeError::Corrupt { .. }) => {
                true
            }
            Self::Read { source, .. } | Self::Tree(TreeError::Read { source, .. }) => {
                early_end(source)
            }
            Self::Tree(TreeError::NoSpan { .. }) | Self::Write { .. } => false,
        }
    }
}

impl Blob {
    /// What verifies it.
    pub fn tree(&self) -> Tree {
        Tree::new(self.identity.hash, self.identity.bytes)
    }

    fn span(&self, index: u64) -> Result<Span, BlobError> {
        let read = |buffer: &mut [u8], offset| self.outboard.read_exact_at(buffer, offset);
        Ok(self.tree().span(index, read)?)
    }

    /// Fills `buffer` with what the blob has at `offset`, and verifies it by `span`.
    /// Both ends are at ends of groups.
    fn read_groups(&self, span: &Span, buffer: &mut [u8], offset: u64) -> Result<(), BlobError> {
        let hash = self.identity.hash;
        self.data
            .read_exact_at(buffer, offset)
            .map_err(|source| BlobError::Read {
                hash,
                offset,
                source,
            })?;
        // A file of nothing is a blob, too, and has one group.
        if buffer.is_empty() && !span.verify(offset / GROUP_BYTES, buffer) {
            return Err(BlobError::Corrupt {
                hash,
                offset,
                length: 0,
            });
        }
        for (bytes, group) in buffer
            .chunks(GROUP_BYTES as usize)
            .zip(offset / GROUP_BYTES..)
        {
            if !span.verify(group, bytes) {
                return Err(BlobError::Corrupt {
                    hash,
                    offset: group * GROUP_BYTES,
                    length: bytes.len() as u64,
                });
            }
        }
        Ok(())
    }

    /// Verifies the values of the blocks in `span`, which is that number, if they are there.
    fn check_blocks(&self, span: &Span, index: u64) -> Result<(), BlobError> {
        let Some(file) = &self.blocks else {
            return Ok(());
        };
        let hash = self.identity.hash;
        let geometry = Geometry::of(self.identity.bytes);
        let first = index * SPAN_GROUPS;
        let groups = first..geometry.groups().min(first + SPAN_GROUPS);
        let place = geometry.block_values(groups.clone());
        let mut values = vec![0; (place.end - place.start) as usize];
        file.read_exact_at(&mut values, place.start)
            .map_err(|source| BlobError::Read {
                hash,
                offset: index * SPAN_BYTES,
                source,
            })?;
        for group in groups.filter(|_| !values.is_empty()) {
            let of_group = geometry.block_values(group..group + 1);
            let (from, to) = (of_group.start - place.start, of_group.end - place.start);
            if span
                .blocks(group, &values[from as usize..to as usize])
                .is_none()
            {
                return Err(BlobError::Blocks {
                    hash,
                    offset: of_group.start,
                });
            }
        }
        Ok(())
    }

    /// Reads all of it, its hash tree and the values of its blocks too, and hands what is verified to `each`, piece by
    /// piece, until that returns false.
    pub fn read_all(&self, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), BlobError> {
        let geometry = Geometry::of(self.identity.bytes);
        let mut buffer = vec![0; SPAN_BYTES as usize];
        for index in 0..geometry.spans() {
            let bytes = &mut buffer[..geometry.span_bytes(index) as usize];
            self.read_span(index, bytes)?;
            if !each(bytes) {
                break;
            }
        }
        Ok(())
    }

    /// Reads one span, what verifies it and the values of its blocks too.
    pub(super) fn check_span(&self, index: u64) -> Result<(), BlobError> {
        let bytes = Geometry::of(self.identity.bytes).span_bytes(index);
        self.read_span(index, &mut vec![0; bytes as usize])
    }

    fn read_span(&self, index: u64, bytes: &mut [u8]) -> Result<(), BlobError> {
        let span = self.span(index)?;
        self.read_groups(&span, bytes, index * SPAN_BYTES)?;
        self.check_blocks(&span, index)
    }
}

/// Reads ranges of a blob, each verified every time.
#[derive(Debug)]
pub struct VerifiedReader<'b> {
    blob: &'b Blob,
    /// The span used last, and its number.
    span: Mutex<Option<(u64, Span)>>,
}

impl<'b> VerifiedReader<'b> {
    /// For this blob.
    pub fn new(blob: &'b Blob) -> Self {
        Self {
            blob,
            span: Mutex::new(None),
        }
    }

    fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<(), BlobError> {
        let geometry = Geometry::of(self.blob.identity.bytes);
        // Replaced as a whole, so never half-made.
        let mut known = self.span.lock().unwrap_or_else(PoisonError::into_inner);
        let mut group_bytes = [0; GROUP_BYTES as usize];
        while !buffer.is_empty() {
            let group = offset / GROUP_BYTES;
            let whole = &mut group_bytes[..geometry.group_bytes(group) as usize];
            let index = offset / SPAN_BYTES;
            let span = match known.take() {
                Some((number, span)) if number == index => span,
                _ => self.blob.span(index)?,
            };
            let (_, span) = known.insert((index, span));
            self.blob.read_groups(span, whole, group * GROUP_BYTES)?;
            let from = (offset % GROUP_BYTES) as usize;
            let found = whole.get(from..).unwrap_or_default();
            let count = found.len().min(buffer.len());
            if count == 0 {
                return Err(BlobError::Read {
                    hash: self.blob.identity.hash,
                    offset,
                    source: io::ErrorKind::UnexpectedEof.into(),
                });
            }
            let (now, later) = buffer.split_at_mut(count);
            now.copy_from_slice(&found[..count]);
            buffer = later;
            offset += count as u64;
        }
        Ok(())
    }
}

impl ReadAt for VerifiedReader<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buffer, offset).map_err(io::Error::other)
    }
}

/// Reads a blob from its start, verified.
#[derive(Debug)]
pub struct StreamReader<B> {
    blob: B,
    /// The span at hand.
    span: Vec<u8>,
    consumed: usize,
    next: u64,
}

impl<B: Borrow<Blob>> StreamReader<B> {
    /// For this blob.
    pub fn new(blob: B) -> Self {
        Self {
            blob,
            span: Vec::new(),
            consumed: 0,
            next: 0,
        }
    }
}

impl<B: Borrow<Blob>> io::Read for StreamReader<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let geometry = Geometry::of(self.blob.borrow().identity.bytes);
        if self.consumed == self.span.len() && self.next < geometry.spans() {
            // Nothing is at hand again before it is verified.
            let mut bytes = std::mem::take(&mut self.span);
            self.consumed = 0;
            bytes.resize(geometry.span_bytes(self.next) as usize, 0);
            let blob = self.blob.borrow();
            let span = blob.span(self.next).map_err(io::Error::other)?;
            blob.read_groups(&span, &mut bytes, self.next * SPAN_BYTES)
                .map_err(io::Error::other)?;
            self.span = bytes;
            self.next += 1;
        }
        let left = &self.span[self.consumed..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.consumed += count;
        Ok(count)
    }
}

/// Whether a directory could not be renamed because another is there.
pub(super) fn is_in_the_way(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
    )
}

impl Store {
    /// A blob, if it is there and has its length. What it holds is verified when it is
    /// read.
    pub fn blob(
        &self,
        identity: BlobIdentity,
        what: impl Fn() -> String,
    ) -> Result<Blob, StoreError> {
        self.blob_in(&self.blob_directory(identity.hash), identity, what)
    }

    /// The same for one that is in `directory`, where it may be on its way to its place.
    pub(super) fn blob_in(
        &self,
        directory: &Path,
        identity: BlobIdentity,
        what: impl Fn() -> String,
    ) -> Result<Blob, StoreError> {
        let open = |name: &str, bytes: u64| {
            let file = File::open(directory.join(name)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => StoreError::Missing { what: what() },
                _ => self.io(format!("opening {}", what()), error),
            })?;
            let metadata = file
                .metadata()
                .map_err(|error| self.io(format!("opening {}", what()), error))?;
            if metadata.len() != bytes {
                return Err(StoreError::Corrupt {
                    what: format!("{name} of {}", what()),
                    expected: format!("{bytes} bytes"),
                    found: format!("{} bytes", metadata.len()),
                });
            }
            Ok(file)
        };
        let geometry = Geometry::of(identity.bytes);
        Ok(Blob {
            identity,
            data: open(DATA, identity.bytes)?,
            outboard: open(OUTBOARD, geometry.outboard_bytes())?,
            blocks: match open(BLOCKS, geometry.block_values_bytes()) {
                Err(StoreError::Missing { .. }) => None,
                opened => Some(opened?),
            },
        })
    }

    /// What a blob of this hash is, if one is there.
    pub(crate) fn blob_identity(&self, hash: BlobHash) -> Option<BlobIdentity> {
        let data = self.blob_directory(hash).join(DATA).metadata().ok()?;
        let bytes = data.len();
        Some(BlobIdentity { hash, bytes })
    }

    /// Puts a blob in its place that was made in `directory` and is on disk, and brings its
    /// name to disk.
    pub(crate) fn publish_blob(
        &self,
        directory: &Path,
        identity: BlobIdentity,
    ) -> Result<(), StoreError> {
        let failed = |error| self.io(format!("storing blob {}", identity.hash), error);
        sync_directory(directory).map_err(failed)?;
        self.place_blob(directory, identity)?;
        sync_directory(&self.blobs()).map_err(failed)
    }

    /// Puts a blob in its place that was made in `directory` and is on disk, names of its
    /// files included. One that is there already and can be used stays; one that cannot
    /// makes room. The name of the blob itself is left to be brought to disk.
    pub(super) fn place_blob(
        &self,
        directory: &Path,
        identity: BlobIdentity,
    ) -> Result<(), StoreError> {
        let place = self.blob_directory(identity.hash);
        let what = || format!("blob {}", identity.hash);
        let failed = |error| self.io(format!("storing {}", what()), error);
        loop {
            if !self.is_damaged(identity)? {
                // It may have come by a way on which there are no block values.
                if directory.join(BLOCKS).exists() && !place.join(BLOCKS).exists() {
                    std::fs::rename(directory.join(BLOCKS), place.join(BLOCKS))
                        .and_then(|()| sync_directory(&place))
                        .map_err(failed)?;
                }
                return std::fs::remove_dir_all(directory).map_err(failed);
            }
            match std::fs::rename(directory, &place) {
                // Somebody else was quicker, or what is there is damaged.
                Err(error) if is_in_the_way(&error) => {
                    let _gate = self.gate().map_err(failed)?;
                    self.make_room(identity)?;
                }
                outcome => return outcome.map_err(failed),
            }
        }
    }

    /// Takes away what is in the place of a blob and cannot be it; under the gate, so that
    /// what somebody else puts there meanwhile stays.
    pub(super) fn make_room(&self, identity: BlobIdentity) -> Result<(), StoreError> {
        match self.is_damaged(identity)? {
            true => self.quarantine(identity.hash),
            false => Ok(()),
        }
    }

    /// Whether a blob is not there, or cannot be what it should be.
    pub fn is_damaged(&self, identity: BlobIdentity) -> Result<bool, StoreError> {
        match self.blob(identity, || format!("blob {}", identity.hash)) {
            Ok(_) => Ok(false),
            Err(error) if error.is_damage() => Ok(true),
            Err(error) => Err(error),
        }
    }

    pub(super) fn blob_directory(&self, hash: BlobHash) -> PathBuf {
        self.blobs().join(hash.hex())
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }
}
