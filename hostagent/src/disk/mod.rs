//! An image as a block device: the blobs that make up its disk, which the VMM verifies as
//! the guest reads them.

pub mod limits;

use std::sync::Arc;

use rustix::fs::{Advice, fadvise};

use crate::store::{Blob, BlobIdentity, Lease, Store, StoreError, StoredImage};
use crate::vm_process::{BlobTree, Disk, Extent};

/// The read-only disk of a loaded image: its metadata, then its layers, base
/// first, without gaps. That is the order the metadata's block addresses count in. Its
/// blobs stay in the store as long as `lease`.
pub fn of_image(store: &Store, image: &StoredImage, lease: &Lease) -> Result<Disk, StoreError> {
    let merged = store.hold(lease, || {
        let merged = store.merged(&image.diff_ids)?;
        let blobs = merged.hashes();
        Ok::<_, StoreError>((merged, blobs))
    })?;
    let layers = merged.layers.into_iter().map(|layer| layer.blob);
    let blobs = std::iter::once(merged.metadata).chain(layers);
    Ok(of_extents(image, blobs.map(extent).collect()))
}

/// All of a blob.
pub fn extent(blob: Blob) -> Extent {
    // They will be needed, and the VMM would wait for each part of them.
    for file in [&blob.outboard].into_iter().chain(&blob.blocks) {
        let _ = fadvise(file, 0, None, Advice::WillNeed);
    }
    Extent {
        file: Arc::new(blob.data.into()),
        offset_bytes: 0,
        length_bytes: blob.identity.bytes,
        blob: Some(BlobTree {
            hash: blob.identity.hash,
            outboard: Arc::new(blob.outboard.into()),
            blocks: blob.blocks.map(|blocks| Arc::new(blocks.into())),
            partial: false,
        }),
    }
}

/// The read-only disk of `image` that consists of these.
pub fn of_extents(image: &StoredImage, extents: Vec<Extent>) -> Disk {
    Disk {
        read_only: true,
        extents,
        source: None,
        serial: Some(image.id.hex()[..SERIAL_DIGITS].to_owned()),
        limits: None,
    }
}

/// Which blobs a disk is made of.
pub fn blobs(disk: &Disk) -> Vec<BlobIdentity> {
    let extents = disk.extents.iter();
    let blobs = extents.filter_map(|extent| {
        let blob = extent.blob.as_ref()?;
        Some(BlobIdentity {
            hash: blob.hash,
            bytes: extent.length_bytes,
        })
    });
    blobs.collect()
}

/// A virtio-blk serial has at most 20 bytes.
const SERIAL_DIGITS: usize = 20;
