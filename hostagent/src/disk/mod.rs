//! An image as a block device: the extents that make up its disk.

pub mod limits;

use std::sync::Arc;

use crate::store::{Blob, Store, StoreError, StoredImage};
use crate::vm_process::{Disk, Extent};

/// The read-only disk of a loaded image: its metadata, then its layers, base
/// first, without gaps. That is the order the metadata's block addresses count in.
pub fn of_image(store: &Store, image: &StoredImage) -> Result<Disk, StoreError> {
    let merged = store.merged(&image.diff_ids)?;
    let whole = |blob: Blob| Extent {
        file: Arc::new(blob.data.into()),
        offset_bytes: 0,
        length_bytes: blob.identity.bytes,
    };
    let metadata = whole(merged.metadata);
    let layers = merged.layers.into_iter().map(|layer| whole(layer.blob));
    Ok(Disk {
        read_only: true,
        extents: std::iter::once(metadata).chain(layers).collect(),
        serial: Some(image.id.hex()[..SERIAL_DIGITS].to_owned()),
        limits: None,
    })
}

/// A virtio-blk serial has at most 20 bytes.
const SERIAL_DIGITS: usize = 20;
