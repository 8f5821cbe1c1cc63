//! Images that are here in part: recorded with where the rest is.
//!
//! ```text
//! lazy/IMAGE_ID.json      the converted image, and the repository that has its blobs
//! accesses/IMAGE_ID.json  what earlier starts read, in order
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layers::read_record;
use super::records::{StoredImage, now_unix_seconds};
use super::{Lease, Store, StoreError};
use crate::image::digest::Digest;
use crate::image::source::SourceImage;
use crate::lazy::artifact::{Access, Converted};

/// An image whose blobs may be partial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LazyImage {
    /// The repository, domain included, that has its blobs.
    pub repository: String,
    /// The image.
    pub converted: Converted,
}

impl Store {
    /// Records an image before its blobs are here, under the names of `source`. What it
    /// consists of stays as long as `lease`.
    pub fn record_lazy(
        &self,
        source: &SourceImage,
        lazy: &LazyImage,
        lease: &Lease,
    ) -> Result<StoredImage, StoreError> {
        let converted = &lazy.converted;
        let blobs = converted.blobs().map(|blob| blob.hash).collect();
        let image = StoredImage {
            id: converted.image,
            manifest: source.manifest.as_ref().map(|manifest| manifest.digest),
            names: source.names.clone(),
            diff_ids: source.config.diff_ids.clone(),
            bytes: converted
                .disk()
                .fold(0, |sum, blob| sum.saturating_add(blob.bytes)),
            created: source.config.created.clone(),
            loaded_unix_seconds: now_unix_seconds(),
            sources: source.origin.iter().cloned().collect(),
        };
        self.hold(lease, || {
            self.keep(&source.config_document)?;
            if let Some(manifest) = &source.manifest {
                self.keep(manifest)?;
            }
            self.write_record(&self.lazy_record(image.id), lazy, || {
                format!("recording image {}", image.id.short())
            })?;
            // From now on it is complete as soon as its blobs are.
            for layer in &converted.layers {
                self.record_layer(
                    layer.diff_id,
                    layer.tar_bytes,
                    layer.blob.identity(),
                    layer.skeleton.identity(),
                )?;
            }
            self.record_merge(&image.diff_ids, converted.metadata.identity())?;
            self.record(&image)?;
            Ok::<_, StoreError>(((), blobs))
        })?;
        Ok(image)
    }

    /// What is known of an image that was recorded before its blobs were here.
    pub fn lazy_image(&self, id: Digest) -> Result<Option<LazyImage>, StoreError> {
        let what = || format!("the record of image {}", id.short());
        read_record(self, self.lazy_record(id), what)
    }

    /// What earlier starts of an image read, in order.
    pub fn accesses(&self, id: Digest) -> Vec<Access> {
        let record = read_record(self, self.access_record(id), String::new);
        // They only save time.
        record.ok().flatten().unwrap_or_default()
    }

    /// Keeps what a start read, for the next one.
    pub fn keep_accesses(&self, id: Digest, accesses: &[Access]) -> Result<(), StoreError> {
        self.write_record(&self.access_record(id), &accesses, || {
            format!("recording what image {} reads", id.short())
        })
    }

    fn lazy_record(&self, id: Digest) -> PathBuf {
        self.lazy_records().join(format!("{}.json", id.hex()))
    }

    fn access_record(&self, id: Digest) -> PathBuf {
        self.access_records().join(format!("{}.json", id.hex()))
    }

    pub(super) fn lazy_records(&self) -> PathBuf {
        self.root.join("lazy")
    }

    pub(super) fn access_records(&self) -> PathBuf {
        self.root.join("accesses")
    }
}
