//! An image's own blob: one tree over its layers, metadata only.

use std::io;
use std::path::{Path, PathBuf};

use erofs::Image;
use erofs::merge::MergeError;
use outboard::BlobHash;
use serde::{Deserialize, Serialize};

use super::blob::{BlobIdentity, BlobWriter};
use super::blobs::{Blob, VerifiedReader, corruption};
use super::durable::Unsynced;
use super::error::is_out_of_space;
use super::layers::{StoredLayer, mistaken, read_record, usable_record};
use super::leases::Lease;
use super::lock::FileLock;
use super::{Store, StoreError};
use crate::image::digest::Digest;

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
    pub metadata: Blob,
    /// The layers, base first.
    pub layers: Vec<StoredLayer>,
}

impl MergedImage {
    /// The hashes of all of them, and of what else is kept of the layers.
    pub fn hashes(&self) -> Vec<BlobHash> {
        let layers = self.layers.iter().flat_map(StoredLayer::hashes);
        let metadata = self.metadata.identity.hash;
        std::iter::once(metadata).chain(layers).collect()
    }
}

impl Store {
    /// The blobs of an image that has been imported.
    pub fn merged(&self, diff_ids: &[Digest]) -> Result<MergedImage, StoreError> {
        let layers = self.all_layers(diff_ids)?;
        let what = || "the merged metadata of the image".to_owned();
        let path = self.merge_record(diff_ids);
        let record = read_record::<Record>(self, path.clone(), what)?
            .ok_or_else(|| StoreError::Missing { what: what() })?;
        if record.diff_ids != diff_ids {
            return Err(mistaken(path, "it is of other layers"));
        }
        let metadata = self.blob(record.blob, what)?;
        Ok(MergedImage { metadata, layers })
    }

    /// Merges layers unless that has been done, and brings that to disk. `image` is for
    /// errors. A layer that turns out to be corrupt is quarantined.
    pub(crate) fn obtain_merged(
        &self,
        image: Digest,
        diff_ids: &[Digest],
        lease: &Lease,
    ) -> Result<(), StoreError> {
        self.merge_unless_merged(image, diff_ids, lease, &mut Unsynced::default())?;
        let names = self.names_of_content().and_then(|mut names| names.sync());
        names.map_err(|error| self.io(format!("keeping image {}", image.short()), error))
    }

    /// The same. What is made, and what `unsynced` has, is on disk then, but for the names of
    /// what is made: see [`Store::names_of_content`]. If nothing is made, nothing is synced.
    pub(super) fn merge_unless_merged(
        &self,
        image: Digest,
        diff_ids: &[Digest],
        lease: &Lease,
        unsynced: &mut Unsynced,
    ) -> Result<(), StoreError> {
        if self.usable_merge(diff_ids, lease)? {
            return Ok(());
        }
        let lock = self
            .locks()
            .join(format!("disk-{}", merge_key(diff_ids).hex()));
        let action = || format!("merging the layers of image {}", image.short());
        let failed = |error| self.io(action(), error);
        let _lock = FileLock::acquire_brief(&lock).map_err(failed)?;
        if self.usable_merge(diff_ids, lease)? {
            return Ok(());
        }
        let staging = self.scratch()?;
        let made = staging.path().join("disk");
        std::fs::create_dir(&made).map_err(failed)?;
        let mut blob = BlobWriter::for_disk(&made).map_err(failed)?;
        let layers = self.all_layers(diff_ids)?;
        if let Err(source) = merge(&layers, &mut blob, &self.limits) {
            if is_out_of_space(&source) {
                // Said after what was half-made is gone.
                let _ = std::fs::remove_dir_all(&made);
                return Err(StoreError::no_space(self.root.clone(), action()));
            }
            let hash = corruption(&source);
            if let Some(hash) = hash {
                self.quarantine(hash)?;
            }
            return Err(StoreError::Merge {
                image,
                source,
                quarantined: hash,
            });
        }
        let blob = blob.finish(unsynced).map_err(failed)?;
        let record = Record {
            diff_ids: diff_ids.to_vec(),
            blob,
        };
        let part = staging.path().join("record");
        let mut synced = || -> io::Result<()> {
            unsynced.add_directory(&made)?;
            unsynced.write(&part, &serde_json::to_vec(&record)?)?;
            unsynced.sync()
        };
        synced().map_err(failed)?;
        self.hold(lease, || Ok::<_, StoreError>(((), vec![blob.hash])))?;
        self.place_blob(&made, blob)?;
        std::fs::rename(&part, self.merge_record(diff_ids)).map_err(failed)
    }

    fn usable_merge(&self, diff_ids: &[Digest], lease: &Lease) -> Result<bool, StoreError> {
        let merged = self.hold(lease, || {
            let merged = self.merged(diff_ids)?;
            Ok::<_, StoreError>(((), merged.hashes()))
        });
        match merged {
            Ok(()) => Ok(true),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The blob that a merge's record names.
    pub(super) fn merge_blob(&self, diff_ids: &[Digest]) -> Result<Option<BlobHash>, StoreError> {
        self.merge_blob_of(&self.merge_record(diff_ids))
    }

    /// The blob that the record of a merge at `path` names.
    pub(super) fn merge_blob_of(&self, path: &Path) -> Result<Option<BlobHash>, StoreError> {
        let record = usable_record::<Record>(self, path.to_owned())?;
        Ok(record.map(|record| record.blob.hash))
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

    pub(super) fn merge_record(&self, diff_ids: &[Digest]) -> PathBuf {
        let key = merge_key(diff_ids).hex();
        self.disks().join(format!("{key}.json"))
    }
}

fn merge(
    layers: &[StoredLayer],
    blob: &mut BlobWriter,
    limits: &erofs::Limits,
) -> Result<(), MergeError> {
    let readers = layers.iter().map(|layer| VerifiedReader::new(&layer.blob));
    let readers: Vec<_> = readers.collect();
    let images = layers
        .iter()
        .zip(&readers)
        .enumerate()
        .map(|(index, (layer, reader))| {
            Image::open(reader, layer.blob.identity.bytes).map_err(|source| MergeError::Layer {
                layer: index,
                source,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    erofs::merge::write(&images, blob, limits).map(drop)
}

/// Names a merge by what is merged. The converter's version is in the path.
fn merge_key(diff_ids: &[Digest]) -> Digest {
    let list: String = diff_ids.iter().map(|id| format!("{id}\n")).collect();
    Digest::of(list.as_bytes())
}
