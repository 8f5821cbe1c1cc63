//! What the store takes on disk.

use std::collections::{BTreeMap, BTreeSet};

use outboard::BlobHash;

use super::boot::BootRecord;
use super::collect::disk_bytes;
use super::records::StoredImage;
use super::{Store, StoreError};
use crate::image::digest::Digest;

/// What one kind of content takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many there are.
    pub total: usize,
    /// How many of them are in use.
    pub active: usize,
    /// Bytes on disk, what several share counted once.
    pub bytes: u64,
    /// Bytes that removing those not in use would give back.
    pub reclaimable_bytes: u64,
}

/// What the store takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Images, what is here in part, and the blobs that no image needs any more.
    pub images: Usage,
    /// The guests' kernel and initrd.
    pub boot: Usage,
    /// Blobs that were not what they should be.
    pub quarantine: Usage,
}

/// What one image takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// The image.
    pub image: StoredImage,
    /// Bytes on disk of blobs that other images have too.
    pub shared_bytes: u64,
    /// Bytes on disk of those it has alone.
    pub unique_bytes: u64,
}

impl Store {
    /// What each image takes, the latest loaded first.
    pub fn usage_of_images(&self) -> Result<Vec<ImageUsage>, StoreError> {
        let mut owners: BTreeMap<BlobHash, usize> = BTreeMap::new();
        let mut all = Vec::new();
        for image in self.images()? {
            let mut blobs: BTreeSet<BlobHash> = BTreeSet::new();
            for diff_id in &image.diff_ids {
                blobs.extend(self.layer_blobs(*diff_id)?);
            }
            blobs.extend(self.merge_blob(&image.diff_ids)?);
            let lazy = self.lazy_blobs(image.id)?.into_iter();
            blobs.extend(lazy.flat_map(|(_, blobs)| blobs));
            for blob in &blobs {
                *owners.entry(*blob).or_default() += 1;
            }
            all.push((image, blobs));
        }
        let usage = all.into_iter().map(|(image, blobs)| {
            let (mut shared_bytes, mut unique_bytes) = (0, 0);
            for blob in blobs {
                let bytes = disk_bytes(&self.blob_directory(blob)) + self.partial_disk_bytes(blob);
                match owners.get(&blob) {
                    Some(1) => unique_bytes += bytes,
                    _ => shared_bytes += bytes,
                }
            }
            ImageUsage {
                image,
                shared_bytes,
                unique_bytes,
            }
        });
        Ok(usage.collect())
    }

    /// What the store takes, where the images `running` are in use.
    pub fn usage(&self, running: &BTreeSet<Digest>) -> Result<StoreUsage, StoreError> {
        let failed = |source| self.io("measuring what it takes", source);
        let images = self.images()?;
        let active: Vec<_> = images
            .iter()
            .filter(|image| running.contains(&image.id))
            .collect();
        let mut kept = self.leased().map_err(failed)?;
        for image in &active {
            for diff_id in &image.diff_ids {
                kept.extend(self.layer_blobs(*diff_id)?);
            }
            kept.extend(self.merge_blob(&image.diff_ids)?);
            kept.extend(
                self.lazy_blobs(image.id)?
                    .into_iter()
                    .flat_map(|(_, blobs)| blobs),
            );
        }
        let boot = self.boot_record()?;
        let boot: Vec<_> = boot.iter().flat_map(BootRecord::hashes).collect();
        let running = boot.iter().any(|hash| kept.contains(hash));
        let boot: BTreeSet<String> = boot.iter().map(outboard::BlobHash::hex).collect();
        let kept: BTreeSet<String> = kept.iter().map(outboard::BlobHash::hex).collect();
        let mut usage = StoreUsage::default();
        usage.images.total = images.len();
        usage.images.active = active.len();
        let whole = std::fs::read_dir(self.blobs()).map_err(failed)?;
        let partial = std::fs::read_dir(self.partials()).map_err(failed)?;
        for entry in whole.chain(partial) {
            let entry = entry.map_err(failed)?;
            let bytes = disk_bytes(&entry.path());
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            // Of what is here in part it goes on with the length.
            let name = name.split('-').next().unwrap_or_default();
            if boot.contains(name) {
                usage.boot.total += 1;
                usage.boot.active += usize::from(running);
                usage.boot.bytes += bytes;
                continue;
            }
            usage.images.bytes += bytes;
            if !kept.contains(name) {
                usage.images.reclaimable_bytes += bytes;
            }
        }
        for entry in std::fs::read_dir(self.quarantined()).map_err(failed)? {
            let bytes = disk_bytes(&entry.map_err(failed)?.path());
            usage.quarantine.total += 1;
            usage.quarantine.bytes += bytes;
            usage.quarantine.reclaimable_bytes += bytes;
        }
        Ok(usage)
    }
}
