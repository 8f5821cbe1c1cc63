//! What the store takes on disk.

use std::collections::BTreeSet;

use super::collect::disk_bytes;
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
    /// Blobs that were not what they should be.
    pub quarantine: Usage,
}

impl Store {
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
        let kept: BTreeSet<String> = kept.iter().map(outboard::BlobHash::hex).collect();
        let mut usage = StoreUsage::default();
        usage.images.total = images.len();
        usage.images.active = active.len();
        let whole = std::fs::read_dir(self.blobs()).map_err(failed)?;
        let partial = std::fs::read_dir(self.partials()).map_err(failed)?;
        for entry in whole.chain(partial) {
            let entry = entry.map_err(failed)?;
            let bytes = disk_bytes(&entry.path());
            usage.images.bytes += bytes;
            if !entry
                .file_name()
                .to_str()
                .is_some_and(|name| kept.contains(name))
            {
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
