//! Reading everything an image needs and comparing it with what was written.

use std::path::PathBuf;

use super::layers::check_blob;
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
    /// Reads all of an image's blobs and its configuration. The first that is
    /// not what was written is the error; it is taken out of the store, so that
    /// loading the image again makes it anew.
    pub fn verify(&self, image: &StoredImage) -> Result<Verified, StoreError> {
        self.config(image.id)?;
        let merged = self.merged(&image.diff_ids)?;
        let mut verified = Verified::default();
        let metadata = check_blob(self, &merged.metadata, &merged.identity, || {
            format!("the merged metadata of image {}", image.id.short())
        });
        self.note(&mut verified, merged.identity.bytes, metadata, || {
            self.merged_directory(&image.diff_ids)
        })?;
        for layer in &merged.layers {
            let checked = check_blob(self, &layer.file, &layer.blob, || {
                format!("layer {}", layer.diff_id)
            });
            self.note(&mut verified, layer.blob.bytes, checked, || {
                self.layer_directory(layer.diff_id)
            })?;
        }
        Ok(verified)
    }

    fn note(
        &self,
        verified: &mut Verified,
        bytes: u64,
        checked: Result<(), StoreError>,
        directory: impl FnOnce() -> PathBuf,
    ) -> Result<(), StoreError> {
        match checked {
            Ok(()) => {
                verified.blobs += 1;
                verified.bytes += bytes;
                Ok(())
            }
            Err(error) => {
                if error.is_damage() {
                    self.discard(&directory())?;
                }
                Err(error)
            }
        }
    }
}
