//! An image's own blob: one tree over its layers, metadata only.

use std::io;
use std::path::{Path, PathBuf};

use erofs::Image;
use erofs::merge::{Merge, MergeError};
use outboard::BlobHash;
use serde::{Deserialize, Serialize};

use super::blob::{BlobIdentity, BlobWriter};
use super::blobs::{Blob, VerifiedReader};
use super::durable::Unsynced;
use super::error::is_out_of_space;
use super::layers::{ConvertedLayer, StoredLayer};
use super::leases::Lease;
use super::lock::FileLock;
use super::made::Made;
use super::quarantine::corruption;
use super::record::{encode, mistaken, read_record, usable_record};
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

/// What to merge.
pub(super) struct MergeLayers<'l> {
    /// The image they are of, for errors.
    pub image: Digest,
    /// All of them, base first.
    pub diff_ids: &'l [Digest],
    /// Those that are merged already, from the base up.
    pub merging: Result<Merge, MergeError>,
    /// One that is not in its place yet.
    pub converted: Option<&'l ConvertedLayer>,
}

impl Store {
    /// The blobs of an image that has been imported.
    pub fn merged(&self, diff_ids: &[Digest]) -> Result<MergedImage, StoreError> {
        let what = || "the merged metadata of the image".to_owned();
        let path = self.merge_record(diff_ids);
        let record = read_record::<Record>(self, path.clone(), what)?
            .ok_or_else(|| StoreError::Missing { what: what() })?;
        if record.diff_ids != diff_ids {
            return Err(mistaken(path, "it is of other layers"));
        }
        let metadata = self.blob(record.blob, what)?;
        let layers = self.all_layers(diff_ids)?;
        Ok(MergedImage { metadata, layers })
    }

    /// Merges layers unless that has been done, and brings that to disk. `image` is for
    /// errors. A layer that turns out to be corrupt is quarantined.
    pub fn obtain_merged(
        &self,
        image: Digest,
        diff_ids: &[Digest],
        lease: &Lease,
    ) -> Result<(), StoreError> {
        let layers = MergeLayers {
            image,
            diff_ids,
            merging: Ok(Merge::new(&self.limits)),
            converted: None,
        };
        if let Some(made) = self.merge_unless_merged(layers, lease, &mut Unsynced::default())? {
            self.place(made, lease)?;
        }
        let names = self.names_of_content().and_then(|mut names| names.sync());
        names.map_err(|error| self.io(format!("keeping image {}", image.short()), error))
    }

    /// Merges layers unless that has been done, and then holds on to it. A layer that is not
    /// in its place yet must be before what is made is ([`Store::place`]). What `unsynced` has
    /// is brought to disk with what is made; if nothing is made, it is left.
    pub(super) fn merge_unless_merged(
        &self,
        layers: MergeLayers<'_>,
        lease: &Lease,
        unsynced: &mut Unsynced,
    ) -> Result<Option<Made>, StoreError> {
        let MergeLayers {
            image,
            diff_ids,
            merging,
            converted,
        } = layers;
        if self.usable_merge(diff_ids, lease)? {
            return Ok(None);
        }
        let lock = self
            .locks()
            .join(format!("disk-{}", merge_key(diff_ids).hex()));
        let action = || format!("merging the layers of image {}", image.short());
        let failed = |error| self.io(action(), error);
        let lock = FileLock::acquire_brief(&lock).map_err(failed)?;
        if self.usable_merge(diff_ids, lease)? {
            return Ok(None);
        }
        let staging = self.scratch()?;
        let directory = staging.path().join("disk");
        std::fs::create_dir(&directory).map_err(failed)?;
        let mut blob = BlobWriter::for_disk(&directory).map_err(failed)?;
        let merged = merging.as_ref().map_or(0, Merge::layers);
        let above = self.blobs_to_merge(&diff_ids[merged..], converted)?;
        let written = merging
            .and_then(|merging| merge(merging, &above))
            .and_then(|merged| merged.write(&mut blob));
        if let Err(source) = written {
            if is_out_of_space(&source) {
                // Said after what was half-made is gone.
                let _ = std::fs::remove_dir_all(&directory);
                return Err(StoreError::no_space(self.root.clone(), action()));
            }
            let hash = corruption(&source).map(|corruption| corruption.hash);
            // One that is not in its place yet is not quarantined, nor what is there.
            let aside = |hash: &BlobHash| converted.is_some_and(|layer| layer.is_blob(*hash));
            if let Some(hash) = hash.filter(|hash| !aside(hash)) {
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
        let mut all_written = || -> io::Result<()> {
            unsynced.add_directory(&directory)?;
            unsynced.write(&part, &encode(&record)?)
        };
        all_written().map_err(failed)?;
        Ok(Some(Made {
            blobs: vec![(directory, blob)],
            record: (part, self.merge_record(diff_ids)),
            syncing: unsynced.start(),
            action: action(),
            _staging: staging,
            _lock: lock,
        }))
    }

    /// The blobs of layers, the one that was converted now among them.
    pub(super) fn blobs_to_merge(
        &self,
        diff_ids: &[Digest],
        converted: Option<&ConvertedLayer>,
    ) -> Result<Vec<Blob>, StoreError> {
        let blob = |diff_id: &Digest| match converted {
            Some(layer) if layer.diff_id == *diff_id => self.converted_blob(layer),
            _ => Ok(self.stored_layer(*diff_id)?.blob),
        };
        diff_ids.iter().map(blob).collect()
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
        let layers = diff_ids.iter().map(|diff_id| self.stored_layer(*diff_id));
        layers.collect()
    }

    fn stored_layer(&self, diff_id: Digest) -> Result<StoredLayer, StoreError> {
        self.layer(diff_id)?.ok_or_else(|| StoreError::Missing {
            what: format!("layer {diff_id}"),
        })
    }

    pub(super) fn merge_record(&self, diff_ids: &[Digest]) -> PathBuf {
        let key = merge_key(diff_ids).hex();
        self.disks().join(format!("{key}.json"))
    }
}

/// Puts layers over those that are merged already.
pub(super) fn merge(mut merging: Merge, layers: &[Blob]) -> Result<Merge, MergeError> {
    for blob in layers {
        let reader = VerifiedReader::new(blob);
        let image = Image::open(&reader, blob.identity.bytes).map_err(|source| {
            let layer = merging.layers();
            MergeError::Layer { layer, source }
        })?;
        merging.add(&image)?;
    }
    Ok(merging)
}

/// Names a merge by what is merged. The converter's version is in the path.
fn merge_key(diff_ids: &[Digest]) -> Digest {
    let list: String = diff_ids.iter().map(|id| format!("{id}\n")).collect();
    Digest::of(list.as_bytes())
}
