//! Disks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use outboard::Tree;
use rustix::fs::OFlags;

use super::descriptor::{check_size, seqpacket, stored_size};
use super::error::{ConfigError, in_range, kind};
use super::limits::limits;
use crate::block::extents::{Extent, ExtentDisk};
use crate::block::verified::Blob;
use crate::descriptors::{Descriptors, access};
use crate::devices::virtio::block::Serial;
use crate::devices::virtio::limiter::Limits;
use crate::spec::{BlobSpec, DiskSpec};

const SECTOR_BYTES: u64 = 512;
/// A disk is a list of an image's blobs; images have at most 256 layers.
const MAX_EXTENTS: usize = 4096;

/// A disk.
#[derive(Debug)]
pub struct DiskConfig {
    /// Its content.
    pub disk: ExtentDisk,
    /// Who has what is missing of it.
    pub source: Option<OwnedFd>,
    /// Its identity.
    pub serial: Serial,
    /// How much it may move.
    pub limits: Limits,
}

/// Validates all disks.
pub fn all(specs: Vec<DiskSpec>, fds: &mut Descriptors) -> Result<Vec<DiskConfig>, ConfigError> {
    let disks = specs.into_iter().zip(0..);
    disks.map(|(spec, index)| disk(spec, index, fds)).collect()
}

fn disk(spec: DiskSpec, index: usize, fds: &mut Descriptors) -> Result<DiskConfig, ConfigError> {
    let field = format!("disks[{index}]");
    in_range(
        &format!("the number of extents of {field}"),
        spec.extents.len() as u64,
        1..=MAX_EXTENTS as u64,
        format!("1 to {MAX_EXTENTS}"),
    )?;
    let mut extents = Vec::with_capacity(spec.extents.len());
    for (extent, number) in spec.extents.into_iter().zip(0..) {
        let field = format!("{field}.extents[{number}]");
        let file: Arc<File> = fds.share(extent.file, &format!("{field}.file"))?;
        let (may_read, may_write) = access(&file);
        if !may_read || !(may_write || spec.read_only) {
            return Err(kind(field, "open for what the disk is used for"));
        }
        if !spec.read_only && appends(&file) {
            let wanted = "open without O_APPEND, by which each write would go to its end";
            return Err(kind(field, wanted));
        }
        let length = extent.length_bytes;
        in_range(
            &format!("{field}.length_bytes"),
            length,
            SECTOR_BYTES..,
            "512 or more",
        )?;
        if length % SECTOR_BYTES != 0 {
            return Err(ConfigError::Range {
                field: format!("{field}.length_bytes"),
                found: length,
                wanted: "a multiple of 512".to_owned(),
            });
        }
        let size = stored_size(&file)
            .ok_or_else(|| kind(field.clone(), "a regular file or a block device"))?;
        let end = extent.offset_bytes.saturating_add(length);
        if end > size {
            return Err(ConfigError::Extent { field, end, size });
        }
        let whole = extent.offset_bytes == 0 && length == size;
        let blob = match extent.blob {
            Some(_) if !whole || !spec.read_only => {
                let wanted = "all of its file, on a read-only disk: it is a blob";
                return Err(kind(field, wanted));
            }
            Some(spec) => Some(blob(spec, length, &format!("{field}.blob"), fds)?),
            None => None,
        };
        extents.push(Extent {
            file,
            offset_bytes: extent.offset_bytes,
            length_bytes: length,
            blob,
        });
    }
    let blobs = extents.iter().filter(|extent| extent.blob.is_some());
    if !matches!(blobs.count(), count if count == 0 || count == extents.len()) {
        let field = format!("{field}.extents");
        return Err(kind(field, "all blobs, or none of them"));
    }
    let partial = |extent: &Extent| extent.blob.as_ref().is_some_and(|blob| blob.partial);
    if extents.iter().any(partial) != spec.source.is_some() {
        let wanted = "there if a blob is partial, and only then";
        return Err(kind(format!("{field}.source"), wanted));
    }
    let source = spec
        .source
        .map(|number| seqpacket(number, &format!("{field}.source"), fds));
    let too_large = || kind(field.clone(), "smaller than 8 EiB");
    Ok(DiskConfig {
        disk: ExtentDisk::new(extents, spec.read_only).ok_or_else(too_large)?,
        source: source.transpose()?,
        serial: disk_serial(spec.serial.as_deref(), &field)?,
        limits: limits(spec.limits, &format!("{field}.limits"))?,
    })
}

fn blob(
    spec: BlobSpec,
    blob_bytes: u64,
    field: &str,
    fds: &mut Descriptors,
) -> Result<Blob, ConfigError> {
    let mut beside = |descriptor, name: &str, bytes: u64| -> Result<Arc<File>, ConfigError> {
        let field = format!("{field}.{name}");
        let file: Arc<File> = fds.share(descriptor, &field)?;
        let (may_read, _) = access(&file);
        if !may_read {
            return Err(kind(field, "open for reading"));
        }
        check_size(&file, bytes, blob_bytes, &field)?;
        Ok(file)
    };
    let tree = Tree::new(spec.hash, blob_bytes);
    let geometry = tree.geometry();
    let outboard = beside(spec.outboard, "outboard", geometry.outboard_bytes())?;
    let blocks = spec
        .blocks
        .map(|blocks| beside(blocks, "blocks", geometry.block_values_bytes()));
    Ok(Blob {
        tree,
        outboard,
        blocks: blocks.transpose()?,
        partial: spec.partial,
    })
}

fn appends(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::APPEND))
}

fn disk_serial(text: Option<&str>, disk: &str) -> Result<Serial, ConfigError> {
    let mut serial = Serial::default();
    let bytes = text.unwrap_or_default().as_bytes();
    if bytes.len() > serial.len() || !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(ConfigError::Text {
            field: format!("{disk}.serial"),
            problem: "is not up to 20 visible ASCII characters",
        });
    }
    serial[..bytes.len()].copy_from_slice(bytes);
    Ok(serial)
}
