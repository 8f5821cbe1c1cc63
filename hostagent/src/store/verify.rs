//! Reading everything an image needs and comparing it with what was written.

use super::blob::BlobIdentity;
use super::blobs::{Blob, BlobError};
use super::records::StoredImage;
use super::{Store, StoreError};

/// What was verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs read and found whole.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Reads all of an image's blobs, their hash trees, and its configuration. The first
    /// that is not what was written is the error; it is quarantined, so that loading the
    /// image again makes it anew.
    pub fn verify(&self, image: &StoredImage) -> Result<Verified, StoreError> {
        self.config(image.id)?;
        let merged = self.merged(&image.diff_ids)?;
        let mut verified = Verified::default();
        self.check(&merged.metadata, &mut verified, || {
            format!("the merged metadata of image {}", image.id.short())
        })?;
        for layer in &merged.layers {
            let what = || format!("layer {}", layer.diff_id);
            self.check(&layer.blob, &mut verified, what)?;
            self.check(&layer.skeleton, &mut verified, what)?;
        }
        Ok(verified)
    }

    /// Reads a blob and quarantines it if it is not what it should be; returns whether it
    /// was so, or is not there any more.
    pub fn quarantine_if_corrupt(&self, identity: BlobIdentity) -> Result<bool, StoreError> {
        let what = || format!("blob {}", identity.hash);
        let checked = self
            .blob(identity, what)
            .and_then(|blob| self.check(&blob, &mut Verified::default(), what));
        match checked {
            Ok(()) => Ok(false),
            Err(StoreError::Corrupt { .. }) => self.quarantine(identity.hash).map(|()| true),
            Err(error) if error.is_damage() => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn check(
        &self,
        blob: &Blob,
        verified: &mut Verified,
        what: impl Fn() -> String,
    ) -> Result<(), StoreError> {
        match blob.read_all(|_| true) {
            Ok(()) => {
                verified.blobs += 1;
                verified.bytes += blob.identity.bytes;
                Ok(())
            }
            Err(source) => {
                if source.is_corruption() {
                    self.quarantine(blob.identity.hash)?;
                }
                Err(self.unusable(source, what))
            }
        }
    }

    /// What is to be told of a blob that could not be read.
    fn unusable(&self, source: BlobError, what: impl Fn() -> String) -> StoreError {
        match source {
            source if source.is_corruption() => StoreError::Blob {
                what: what(),
                source,
            },
            source => self.io(format!("reading {}", what()), std::io::Error::other(source)),
        }
    }
}
