//! An image's own blob: one tree over its layers, metadata only.

use std::fs::File;
use std::path::PathBuf;

use erofs::Image;
use erofs::merge::MergeError;
use serde::{Deserialize, Serialize};

use super::blob::{BlobIdentity, BlobWriter};
use super::durable::{publish, write_file};
use super::error::is_out_of_space;
use super::layers::{StoredLayer, open_blob, read_record};
use super::lock::FileLock;
use super::{Store, StoreError};
use crate::image::digest::Digest;

const BLOB: &str = "metadata.erofs";
const RECORD: &str = "record.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    diff_ids: Vec<Digest>,
    blob: BlobIdentity,
}

/// The blobs a disk is made of, in the order of the disk.
#[derive(Debug)]
pub struct MergedImage {
    /// The tree over all layers.
    pub metadata: File,
    /// The length and checksum of `metadata`.
    pub identity: BlobIdentity,
    /// The layers, base first.
    pub layers: Vec<StoredLayer>,
}

impl Store {
    /// The blobs of an image that has been imported.
    pub fn merged(&self, diff_ids: &[Digest]) -> Result<MergedImage, StoreError> {
        let layers = self.all_layers(diff_ids)?;
        let what = || "the merged metadata of the image".to_owned();
        let directory = self.merged_directory(diff_ids);
        let record = read_record::<Record>(self, directory.join(RECORD), what)?
            .ok_or_else(|| StoreError::Missing { what: what() })?;
        let metadata = open_blob(self, directory.join(BLOB), &record.blob, what)?;
        Ok(MergedImage {
            metadata,
            identity: record.blob,
            layers,
        })
    }

    /// Merges layers unless that has been done. `image` is for errors.
    pub(super) fn obtain_merged(
        &self,
        image: Digest,
        diff_ids: &[Digest],
    ) -> Result<(), StoreError> {
        if self.usable_merge(diff_ids)? {
            return Ok(());
        }
        let directory = self.merged_directory(diff_ids);
        let lock = self
            .locks()
            .join(format!("disk-{}", merge_key(diff_ids).hex()));
        let action = || format!("merging the layers of image {}", image.short());
        let failed = |error| self.io(action(), error);
        let _lock = FileLock::acquire_brief(&lock).map_err(failed)?;
        if self.usable_merge(diff_ids)? {
            return Ok(());
        }
        self.discard(&directory)?;

        let staging = self.scratch()?;
        let made = staging.path().join("disk");
        std::fs::create_dir(&made).map_err(failed)?;
        let mut blob = BlobWriter::create(&made.join(BLOB)).map_err(failed)?;
        let layers = self.all_layers(diff_ids)?;
        merge(&layers, &mut blob).map_err(|source| {
            if !is_out_of_space(&source) {
                return StoreError::Merge { image, source };
            }
            // Said after what was half-made is gone.
            let _ = std::fs::remove_dir_all(&made);
            StoreError::no_space(self.root.clone(), action())
        })?;
        let record = Record {
            diff_ids: diff_ids.to_vec(),
            blob: blob.finish().map_err(failed)?,
        };
        let record = serde_json::to_vec(&record).map_err(std::io::Error::other);
        record
            .and_then(|record| write_file(&made.join(RECORD), &record))
            .and_then(|()| publish(&made, &directory))
            .map_err(failed)
    }

    fn usable_merge(&self, diff_ids: &[Digest]) -> Result<bool, StoreError> {
        match self.merged(diff_ids) {
            Ok(_) => Ok(true),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn all_layers(&self, diff_ids: &[Digest]) -> Result<Vec<StoredLayer>, StoreError> {
        diff_ids
            .iter()
            .map(|diff_id| {
                self.layer(*diff_id)?.ok_or_else(|| StoreError::Missing {
                    what: format!("layer {diff_id}"),
                })
            })
            .collect()
    }

    pub(super) fn merged_directory(&self, diff_ids: &[Digest]) -> PathBuf {
        self.disks().join(merge_key(diff_ids).hex())
    }
}

fn merge(layers: &[StoredLayer], blob: &mut BlobWriter) -> Result<(), MergeError> {
    let images = layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            Image::open(&layer.file, layer.blob.bytes).map_err(|source| MergeError::Layer {
                layer: index,
                source,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    erofs::merge::write(&images, blob, &erofs::Limits::default()).map(drop)
}

/// Names a merge by what is merged. The converter's version is in the path.
fn merge_key(diff_ids: &[Digest]) -> Digest {
    let list: String = diff_ids.iter().map(|id| format!("{id}\n")).collect();
    Digest::of(list.as_bytes())
}
