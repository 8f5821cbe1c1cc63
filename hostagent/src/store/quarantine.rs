//! Taking out of use what is not what it should be. It is kept aside, until `mote image
//! prune`, and what needs it makes it or fetches it again.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use outboard::{BlobHash, SPAN_BYTES, TreeError};

use super::blob::{BlobIdentity, DATA};
use super::blobs::{Blob, BlobError};
use super::partial::is_at;
use super::{Store, StoreError};
use crate::image::digest::Digest;

/// What an error says of a corrupt blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Corruption {
    /// The blob.
    pub hash: BlobHash,
    /// The span of it that is wrong, where that is said.
    pub span: Option<u64>,
}

/// Whether an error, or one that caused it, is that of a corrupt blob; which one.
pub(super) fn corruption(error: &(dyn Error + 'static)) -> Option<Corruption> {
    let mut current = Some(error);
    while let Some(error) = current {
        // An io::Error's source is that of what it carries, not what it carries.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let found = match inner {
            Some(inner) => inner.downcast_ref::<BlobError>(),
            None => error.downcast_ref::<BlobError>(),
        };
        let found = found.filter(|found| found.is_corruption());
        if let Some(corruption) = found.and_then(Corruption::of) {
            return Some(corruption);
        }
        current = error.source();
    }
    None
}

impl Corruption {
    fn of(error: &BlobError) -> Option<Self> {
        let (hash, span) = match error {
            BlobError::Corrupt { hash, offset, .. } | BlobError::Read { hash, offset, .. } => {
                (*hash, Some(offset / SPAN_BYTES))
            }
            // Where these are in files of their own is not where the blob is wrong.
            BlobError::Blocks { hash, .. }
            | BlobError::Tree(TreeError::Corrupt { hash, .. } | TreeError::Read { hash, .. }) => {
                (*hash, None)
            }
            BlobError::Tree(TreeError::NoSpan { .. }) | BlobError::Write { .. } => return None,
        };
        Some(Self { hash, span })
    }
}

impl Store {
    /// Reads a blob and quarantines it if it is not what it should be; returns whether it
    /// was so, or is not there any more.
    pub fn quarantine_if_corrupt(&self, identity: BlobIdentity) -> Result<bool, StoreError> {
        self.quarantine_if(identity, |blob| blob.read_all(|_| true))
    }

    /// The same, but reads no more of it than one span, which it must have.
    pub fn quarantine_if_span_corrupt(
        &self,
        identity: BlobIdentity,
        span: u64,
    ) -> Result<bool, StoreError> {
        self.quarantine_if(identity, |blob| blob.check_span(span))
    }

    fn quarantine_if(
        &self,
        identity: BlobIdentity,
        check: impl FnOnce(&Blob) -> Result<(), BlobError>,
    ) -> Result<bool, StoreError> {
        let what = || format!("blob {}", identity.hash);
        let blob = match self.blob(identity, what) {
            Ok(blob) => blob,
            Err(StoreError::Corrupt { .. }) => {
                return self.quarantine(identity.hash).map(|()| true);
            }
            Err(error) if error.is_damage() => return Ok(true),
            Err(error) => return Err(error),
        };
        match check(&blob) {
            Ok(()) => Ok(false),
            Err(error) if error.is_corruption() => self.quarantine_read(&blob).map(|()| true),
            Err(error) => Err(self.io(format!("reading {}", what()), io::Error::other(error))),
        }
    }

    /// Quarantines a blob that was found to be corrupt, unless another has taken its place
    /// since it was opened.
    pub(super) fn quarantine_read(&self, blob: &Blob) -> Result<(), StoreError> {
        let hash = blob.identity.hash;
        let failed = |error| self.io(format!("quarantining blob {hash}"), error);
        let _gate = self.gate().map_err(failed)?;
        let data = self.blob_directory(hash).join(DATA);
        match is_at(&blob.data, &data).map_err(failed)? {
            true => self.quarantine(hash),
            false => Ok(()),
        }
    }

    /// Quarantines the blob that an error says is corrupt, or that caused it, if it is so
    /// still; returns which one.
    pub(crate) fn quarantine_cause(
        &self,
        error: &(dyn Error + 'static),
    ) -> Result<Option<BlobHash>, StoreError> {
        let Some(Corruption { hash, span }) = corruption(error) else {
            return Ok(None);
        };
        let Some(blob) = self.blob_identity(hash) else {
            return Ok(None);
        };
        // What has just been read need not be read again up to where it is wrong. A blob
        // whose file has lost its end has not all the spans it had.
        let corrupt = match span.filter(|span| span * SPAN_BYTES < blob.bytes) {
            Some(span) => self.quarantine_if_span_corrupt(blob, span)?,
            None => false,
        };
        let corrupt = corrupt || self.quarantine_if_corrupt(blob)?;
        Ok(corrupt.then_some(hash))
    }

    /// Takes a blob out of use that is not what it should be, and keeps it aside, in the
    /// place of what was kept of it before. Who has its files open goes on with them.
    pub fn quarantine(&self, hash: BlobHash) -> Result<(), StoreError> {
        let failed = |error| self.io(format!("quarantining blob {hash}"), error);
        let directory = self.blob_directory(hash);
        if !directory.exists() {
            return Ok(());
        }
        let kept = self.quarantined().join(hash.hex());
        let staging = self.in_reserve(|| self.scratch())?;
        match std::fs::rename(&kept, staging.path().join("before")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        match std::fs::rename(&directory, &kept) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.map_err(failed),
        }
    }

    /// The same for a manifest or a configuration, by the name of its file, unless it is what
    /// that says now: others may have put it there again. Returns whether it was quarantined.
    pub(super) fn quarantine_document(&self, name: &str) -> Result<bool, StoreError> {
        let failed = |error| self.io(format!("quarantining document sha256:{name}"), error);
        let path = self.contents().join(name);
        let kept = self.quarantined().join(format!("sha256-{name}"));
        let _gate = self.gate().map_err(failed)?;
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            read => read.map_err(failed)?,
        };
        if Digest::from_hex(name) == Some(Digest::of(&bytes)) {
            return Ok(false);
        }
        self.in_reserve(|| std::fs::create_dir_all(&kept).map_err(failed))?;
        std::fs::rename(&path, kept.join(DATA)).map_err(failed)?;
        Ok(true)
    }

    pub(super) fn quarantined(&self) -> PathBuf {
        self.root.join("quarantine")
    }
}
