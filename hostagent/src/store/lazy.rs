//! Images that are here in part: recorded with where the rest is.
//!
//! ```text
//! lazy/IMAGE_ID-REPOSITORY.json  the converted image, and the repository that has its blobs
//! accesses/IMAGE_ID.json         what earlier starts read, in order
//! ```
//!
//! What a repository says an image converts to is believed for that image from that
//! repository alone: it is not recorded as what a layer converts to, which other images
//! would use.

use std::collections::BTreeMap;
use std::path::PathBuf;

use outboard::BlobHash;
use serde::{Deserialize, Serialize};

use super::record::{read_record, usable_record};
use super::records::{StoredImage, now_unix_seconds};
use super::{BlobIdentity, Lease, MergedImage, Store, StoreError};
use crate::image::digest::Digest;
use crate::image::source::SourceImage;
use crate::lazy::artifact::{Access, Converted};

/// What an image consists of in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageParts {
    /// The tree over its layers.
    pub metadata: BlobIdentity,
    /// The layers, base first.
    pub layers: Vec<LayerParts>,
    /// For one that was not converted here, the repository that says all of this, and how
    /// many bytes have not arrived.
    pub lazy: Option<(String, u64)>,
}

/// What a layer consists of in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerParts {
    /// The digest of its tar stream.
    pub diff_id: Digest,
    /// How long that is, in bytes.
    pub tar_bytes: u64,
    /// What it converts to.
    pub blob: BlobIdentity,
    /// What else of the tar stream there is.
    pub skeleton: BlobIdentity,
}

impl ImageParts {
    fn of_merged(merged: &MergedImage) -> Self {
        let layers = merged.layers.iter().map(|layer| LayerParts {
            diff_id: layer.diff_id,
            tar_bytes: layer.tar_bytes,
            blob: layer.blob.identity,
            skeleton: layer.skeleton.identity,
        });
        Self {
            metadata: merged.metadata.identity,
            layers: layers.collect(),
            lazy: None,
        }
    }
}

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
    /// Records an image before its blobs are here, under its names.
    pub fn record_lazy(
        &self,
        source: &SourceImage,
        image: &StoredImage,
        lazy: &LazyImage,
        lease: &Lease,
    ) -> Result<(), StoreError> {
        self.hold(lease, || {
            for document in source.documents() {
                self.keep(document)?;
            }
            let path = self.lazy_record(image.id, &lazy.repository);
            let action = || format!("recording image {}", image.id.short());
            self.write_record(&path, lazy, action)?;
            let names = self.names_of_content();
            self.record(image, names.map_err(|error| self.io(action(), error))?)?;
            Ok::<_, StoreError>(((), Vec::new()))
        })
    }

    /// What is to be recorded of it, once it has turned out to be usable.
    pub fn describe_lazy(&self, source: &SourceImage, lazy: &LazyImage) -> StoredImage {
        let disk = lazy.converted.disk();
        StoredImage {
            id: lazy.converted.image,
            manifest: source.manifest.as_ref().map(|manifest| manifest.digest),
            names: source.names.clone(),
            diff_ids: source.config.diff_ids.clone(),
            bytes: disk.fold(0, |sum, blob| sum.saturating_add(blob.bytes)),
            created: source.config.created.clone(),
            loaded_unix_seconds: now_unix_seconds(),
            sources: source.origin.iter().cloned().collect(),
        }
    }

    /// The records of an image that is here in part, by the names of their files, and the
    /// blobs that each names.
    pub(super) fn lazy_blobs(
        &self,
        id: Digest,
    ) -> Result<Vec<(String, Vec<BlobHash>)>, StoreError> {
        let failed = |source| self.io("reading the records of images", source);
        let prefix = format!("{}-", id.hex());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.lazy_records()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(&prefix) {
                let record = usable_record::<LazyImage>(self, entry.path())?;
                let blobs = record.iter().flat_map(|lazy| lazy.converted.blobs());
                found.push((name, blobs.map(|blob| blob.hash).collect()));
            }
        }
        Ok(found)
    }

    /// What is known of an image that was recorded before its blobs were here, from this
    /// repository (in full, as `ImageName::repository` has it).
    pub fn lazy_image(
        &self,
        id: Digest,
        repository: &str,
    ) -> Result<Option<LazyImage>, StoreError> {
        let what = || format!("the record of image {}", id.short());
        read_record(self, self.lazy_record(id, repository), what)
    }

    /// All that is known of an image that was recorded before its blobs were here, from
    /// each repository one. What cannot be used as a record is passed over.
    pub fn lazy_images(&self, id: Digest) -> Result<Vec<LazyImage>, StoreError> {
        let mut found = Vec::new();
        for (name, _) in self.lazy_blobs(id)? {
            let record = usable_record::<LazyImage>(self, self.lazy_records().join(name))?;
            found.extend(record.filter(|lazy| lazy.converted.image == id));
        }
        Ok(found)
    }

    /// What an image consists of, whether it is all here or not.
    pub fn parts(&self, image: &StoredImage) -> Result<ImageParts, StoreError> {
        let missing = match self.merged(&image.diff_ids) {
            Ok(merged) => return Ok(ImageParts::of_merged(&merged)),
            Err(error @ StoreError::Missing { .. }) => error,
            Err(error) => return Err(error),
        };
        let lazy = self.lazy_images(image.id)?.into_iter().next();
        let LazyImage {
            repository,
            converted,
        } = lazy.ok_or(missing)?;
        let blobs: BTreeMap<_, _> = converted.blobs().map(|blob| (blob.hash, blob)).collect();
        let blobs = blobs.values().map(|blob| blob.identity());
        let missing_bytes = blobs.map(|blob| self.missing_bytes(blob)).sum();
        let layers = converted.layers.iter().map(|layer| LayerParts {
            diff_id: layer.diff_id,
            tar_bytes: layer.tar_bytes,
            blob: layer.blob.identity(),
            skeleton: layer.skeleton.identity(),
        });
        Ok(ImageParts {
            metadata: converted.metadata.identity(),
            layers: layers.collect(),
            lazy: Some((repository, missing_bytes)),
        })
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

    fn lazy_record(&self, id: Digest, repository: &str) -> PathBuf {
        let repository = Digest::of(repository.as_bytes()).short();
        self.lazy_records()
            .join(format!("{}-{repository}.json", id.hex()))
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
