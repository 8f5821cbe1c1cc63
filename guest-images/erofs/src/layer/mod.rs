//! A layer: a tar stream becomes a blob.

mod builder;
mod content;
mod error;

use std::io::{Read, Seek, Write};

pub use error::LayerError;

use crate::Limits;
use crate::blob::BlobWriter;
use crate::extents::{blocks_of, byte_of};
use crate::metadata::{self, Layout, Target};
use crate::tar::{self, Recorder};
use builder::Builder;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSummary {
    /// Length of the blob, a multiple of [`BLOCK_BYTES`](crate::BLOCK_BYTES).
    pub blob_bytes: u64,
    /// Length of the tar stream, which was read to its end.
    pub tar_bytes: u64,
    /// Inodes in the blob.
    pub inodes: u64,
    /// Extended attributes left out: of namespaces that EROFS has no place for,
    /// or reserved for overlayfs and for merging layers.
    pub dropped_xattrs: u64,
}

/// Writes the layer in `tar` to `out` as one EROFS blob.
///
/// `out` must be empty. It is written from front to back in pieces of 256 KiB,
/// then the first block once more; nothing is read back and nothing synced. On
/// an error it holds a part of a blob and should be discarded. `tar` is read to
/// its end, also past the end of the archive, so that a reader which hashes as
/// it goes has seen what the digest of a layer covers.
///
/// Memory grows with the number of entries, never with the size of a file, and
/// is bounded by `limits`.
///
/// Whiteouts (OCI image specification, "Layer Filesystem Changeset") become
/// those of overlayfs, so that the blob serves as a lower layer: `.wh.NAME` a
/// character device 0:0 called NAME, `.wh..wh..opq` the attribute
/// `trusted.overlay.opaque` of its directory. Other names that begin with
/// `.wh..wh.` belong to aufs and are left out.
///
/// No symbolic link is followed: an entry whose path goes through one is
/// refused.
pub fn write<R: Read, W: Write + Seek>(
    tar: R,
    out: W,
    limits: &Limits,
) -> Result<LayerSummary, LayerError> {
    convert(tar::Reader::new(tar, limits.max_tar_bytes), out, limits)
}

/// The same, and tells `recorder` what `tar` consists of: each byte of it is
/// either told as it is or as a place in the blob. Content that never reaches the
/// blob, as that of a whiteout, is told as it is: of a strange layer that may be
/// nearly all, so whoever keeps what is told should count on `tar_bytes` of it.
///
/// The blob is the one that [`write()`] makes. Places told of are final: past the
/// first block, which is written again, and before the metadata. A recorder that
/// fails ends the conversion.
pub fn write_recorded<R: Read, W: Write + Seek, K: Recorder>(
    tar: R,
    out: W,
    limits: &Limits,
    recorder: K,
) -> Result<LayerSummary, LayerError> {
    let tar = tar::Reader::recorded(tar, limits.max_tar_bytes, recorder);
    convert(tar, out, limits)
}

fn convert<R: Read, W: Write + Seek, K: Recorder>(
    mut tar: tar::Reader<R, K>,
    out: W,
    limits: &Limits,
) -> Result<LayerSummary, LayerError> {
    let mut blob = BlobWriter::new(out, limits.max_blob_bytes);
    let mut builder = Builder::new(limits);
    while let Some(entry) = tar.next_entry()? {
        builder.add(entry, &mut tar, &mut blob)?;
    }
    let tar_bytes = tar.position();
    let dropped_xattrs = builder.dropped_xattrs();
    let tree = builder.finish()?;

    let too_large = || LayerError::BlobTooLarge {
        limit: limits.max_blob_bytes,
    };
    let layout = Layout::new(&tree).map_err(|_| too_large())?;
    blob.reserve(byte_of(layout.blocks()))?;
    let disk_blocks = blocks_of(blob.position()) + layout.blocks();
    let target = Target {
        layer_blocks: &[0],
        disk_blocks: u32::try_from(disk_blocks).map_err(|_| too_large())?,
    };
    let inodes = layout.places.len() as u64;
    metadata::write(&tree, &layout, &target, blob)?;
    Ok(LayerSummary {
        blob_bytes: byte_of(disk_blocks),
        tar_bytes,
        inodes,
        dropped_xattrs,
    })
}
