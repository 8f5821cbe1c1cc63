//! A layer, converted once: its tar stream as one EROFS blob.

use std::io::{self, Read};
use std::path::PathBuf;

use erofs::image::ReadAt;
use erofs::skeleton::Assembler;
use outboard::BlobHash;
use serde::{Deserialize, Serialize};

use super::blob::{BlobIdentity, BlobWriter};
use super::blobs::{Blob, StreamReader, VerifiedReader};
use super::convert::{BLOB, Conversion, SKELETON, converting};
use super::durable::Unsynced;
use super::import::ImportError;
use super::leases::Lease;
use super::lock::FileLock;
use super::made::Made;
use super::record::{encode, mistaken, read_record, usable_record};
use super::staging::Staging;
use super::{Store, StoreError};
use crate::image::digest::Digest;
use crate::image::hashing::HashingReader;
use crate::image::layer::LayerSource;
use crate::image::progress::Progress;

/// The version of the conversion from tar to EROFS and of the merge. Raised
/// whenever either would give other bytes for the same input; what an older
/// version made is then no longer found and is made again.
pub const CONVERTER_VERSION: u32 = 1;

/// How much memory decompressing one may take, as a power of two: what zstd's levels up to 19
/// ask for.
const SKELETON_WINDOW_LOG: u32 = 23;

/// What is known about a converted layer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    diff_id: Digest,
    /// The length of the tar stream.
    tar_bytes: u64,
    blob: BlobIdentity,
    /// What of the tar stream is not in the blob ([`erofs::skeleton`]), in zstd.
    skeleton: BlobIdentity,
}

/// A converted layer.
#[derive(Debug)]
pub struct StoredLayer {
    /// The digest of the tar stream it was made from.
    pub diff_id: Digest,
    /// How long that is, in bytes.
    pub tar_bytes: u64,
    /// What it was converted to.
    pub blob: Blob,
    /// What else the tar stream consists of: see [`StoredLayer::tar`].
    pub skeleton: Blob,
}

impl StoredLayer {
    /// The hashes of its blobs.
    pub fn hashes(&self) -> [BlobHash; 2] {
        [&self.blob, &self.skeleton].map(|blob| blob.identity.hash)
    }

    /// Hands the tar stream it was made from to `consume`, and then tells whether it was
    /// that: with its digest, and of the length that is recorded.
    pub fn tar<T>(&self, consume: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<T> {
        self.tar_unverified(u64::MAX, |tar| {
            // One byte more than is recorded would be too long already.
            let most = self.tar_bytes.saturating_add(1);
            let mut counted = tar.take(most);
            let mut tar = HashingReader::new(&mut counted)?;
            let made = consume(&mut tar)?;
            let digest = tar.finish()?;
            let bytes = most - counted.limit();
            if bytes != self.tar_bytes {
                return Err(io::Error::other(format!(
                    "the tar stream of layer {} is not as long as its record says: {} bytes",
                    self.diff_id, self.tar_bytes
                )));
            }
            if digest != self.diff_id {
                return Err(io::Error::other(format!(
                    "the tar stream of layer {} is another when it is put together again: {digest}",
                    self.diff_id
                )));
            }
            Ok(made)
        })
    }

    /// Hands to `consume` what blob and skeleton give, whatever that is; the skeleton at
    /// most so long after decompression.
    pub(crate) fn tar_unverified<T>(
        &self,
        max_skeleton_bytes: u64,
        consume: impl FnOnce(&mut dyn Read) -> io::Result<T>,
    ) -> io::Result<T> {
        let blob = VerifiedReader::new(&self.blob);
        let parts = TarParts {
            skeleton: StreamReader::new(&self.skeleton),
            blob: &blob,
            blob_bytes: self.blob.identity.bytes,
            max_skeleton_bytes,
        };
        consume(&mut parts.assemble()?)
    }
}

/// What a layer's tar stream is put together from: here from the store, or on its way
/// from a peer.
pub(crate) struct TarParts<S, B> {
    /// The skeleton, in zstd.
    pub skeleton: S,
    /// The blob that goes with it.
    pub blob: B,
    /// How long the blob is.
    pub blob_bytes: u64,
    /// How long the skeleton may be after decompression.
    pub max_skeleton_bytes: u64,
}

impl<S: Read, B: ReadAt> TarParts<S, B> {
    /// The tar stream. What it is only its digest tells.
    pub fn assemble(self) -> io::Result<impl Read + use<S, B>> {
        let mut skeleton = zstd::Decoder::new(self.skeleton)?;
        skeleton.window_log_max(SKELETON_WINDOW_LOG)?;
        let skeleton = skeleton.take(self.max_skeleton_bytes);
        Ok(Assembler::new(skeleton, self.blob, self.blob_bytes)?)
    }
}

/// A layer that was converted now.
#[derive(Debug)]
pub(super) struct ConvertedLayer {
    /// Which one.
    pub diff_id: Digest,
    /// Where its blob is until it is in its place, and which blob that is.
    blob: (PathBuf, BlobIdentity),
    /// The blob, its skeleton and its record.
    pub made: Made,
}

impl ConvertedLayer {
    /// Whether that is what it was converted to.
    pub fn is_blob(&self, hash: BlobHash) -> bool {
        self.blob.1.hash == hash
    }
}

impl Store {
    /// A layer converted before.
    pub fn layer(&self, diff_id: Digest) -> Result<Option<StoredLayer>, StoreError> {
        let what = || format!("layer {diff_id}");
        let path = self.layer_record(diff_id);
        let Some(record) = read_record::<Record>(self, path.clone(), what)? else {
            return Ok(None);
        };
        if record.diff_id != diff_id {
            return Err(mistaken(path, "it is another layer's"));
        }
        Ok(Some(StoredLayer {
            diff_id,
            tar_bytes: record.tar_bytes,
            blob: self.blob(record.blob, what)?,
            skeleton: self.blob(record.skeleton, || format!("the skeleton of {}", what()))?,
        }))
    }

    /// The blobs that a layer's record names; none if there is no record.
    pub(super) fn layer_blobs(&self, diff_id: Digest) -> Result<Vec<BlobHash>, StoreError> {
        let recorded = self.recorded_blobs(diff_id)?;
        let blobs = recorded.map(|blobs| blobs.map(|blob| blob.hash));
        Ok(blobs.into_iter().flatten().collect())
    }

    /// The blob and the skeleton that a layer's record names, whether they are there or
    /// not.
    pub(crate) fn recorded_blobs(
        &self,
        diff_id: Digest,
    ) -> Result<Option<[BlobIdentity; 2]>, StoreError> {
        let record = usable_record::<Record>(self, self.layer_record(diff_id))?;
        Ok(record.map(|record| [record.blob, record.skeleton]))
    }

    /// Converts a layer unless that has been done, and then holds on to it. If another process
    /// is at it, waits for that one. `name` is for the progress. What is made is not in its
    /// place yet: until it is ([`Store::place`]) the caller waits for no other layer, since
    /// others may wait for this one.
    pub(super) fn obtain_layer(
        &self,
        source: &LayerSource,
        name: &str,
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<Option<ConvertedLayer>, ImportError> {
        let diff_id = source.diff_id;
        let lock = FileLock::acquire(
            &self.locks().join(format!("layer-{}", diff_id.hex())),
            || progress.note("waiting for another mote that converts the same layer"),
            || progress.cancelled(),
        )
        .map_err(|error| self.io("waiting for another process", error))?
        .ok_or(ImportError::Cancelled)?;
        if self.usable_layer(diff_id, lease)? {
            return Ok(None);
        }
        // Ends: each turn but the last has rejected whoever gave the layer.
        loop {
            let staging = self.scratch()?;
            let task = progress.begin(name, source.content.length());
            match self.convert(source, &staging, &*task) {
                Err(ImportError::Layer(error)) if error.is_other_blob() => {
                    let Some(giver) = source.content.reject() else {
                        return Err(ImportError::Layer(error));
                    };
                    progress.note(&format!("asking elsewhere than at {giver}: {error}"));
                }
                converted => return self.made(diff_id, converted?, staging, lock).map(Some),
            }
        }
    }

    /// What was converted, on its way to disk.
    fn made(
        &self,
        diff_id: Digest,
        conversion: Conversion,
        staging: Staging,
        lock: FileLock,
    ) -> Result<ConvertedLayer, ImportError> {
        let failed = |error| self.io(converting(diff_id), error);
        let [blob_directory, skeleton_directory] =
            [BLOB, SKELETON].map(|name| staging.path().join(name));
        let mut unsynced = Unsynced::default();
        let mut finish = |blob: BlobWriter| blob.finish(&mut unsynced).map_err(failed);
        let record = Record {
            diff_id,
            tar_bytes: conversion.tar_bytes,
            blob: finish(conversion.blob)?,
            skeleton: finish(conversion.skeleton)?,
        };
        let part = staging.path().join("record");
        let mut all_written = || -> io::Result<()> {
            unsynced.add_directory(&blob_directory)?;
            unsynced.add_directory(&skeleton_directory)?;
            unsynced.write(&part, &encode(&record)?)
        };
        all_written().map_err(failed)?;
        let blob = (blob_directory, record.blob);
        let made = Made {
            blobs: vec![blob.clone(), (skeleton_directory, record.skeleton)],
            record: (part, self.layer_record(diff_id)),
            syncing: unsynced.start(),
            action: converting(diff_id),
            _staging: staging,
            _lock: lock,
        };
        Ok(ConvertedLayer {
            diff_id,
            blob,
            made,
        })
    }

    /// The blob of a layer that is not in its place yet.
    pub(super) fn converted_blob(&self, layer: &ConvertedLayer) -> Result<Blob, StoreError> {
        let (directory, identity) = &layer.blob;
        self.blob_in(directory, *identity, || format!("layer {}", layer.diff_id))
    }

    /// Whether a layer is there and has its length; if so, holds on to it. One that has
    /// not, or has no readable record, is as good as not there.
    pub(super) fn usable_layer(&self, diff_id: Digest, lease: &Lease) -> Result<bool, StoreError> {
        let layer = self.hold(lease, || {
            let layer = self.layer(diff_id)?;
            let blobs = layer.iter().flat_map(StoredLayer::hashes).collect();
            Ok::<_, StoreError>((layer, blobs))
        });
        match layer {
            Ok(layer) => Ok(layer.is_some()),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn layer_record(&self, diff_id: Digest) -> PathBuf {
        self.layers().join(format!("{}.json", diff_id.hex()))
    }
}

#[cfg(test)]
mod tests {
    use erofs::tar::Recorder;

    use super::super::convert::SKELETON_LEVEL;
    use super::*;

    #[test]
    fn a_skeleton_that_decompresses_past_its_limit_is_refused() {
        let mut writer = erofs::skeleton::Writer::new(Vec::new());
        writer.literal(&[0; 1 << 20]).unwrap();
        let plain = writer.finish().unwrap();
        let packed = zstd::encode_all(&plain[..], SKELETON_LEVEL).unwrap();
        let read = |max_skeleton_bytes| {
            let parts = TarParts {
                skeleton: &packed[..],
                blob: Vec::new(),
                blob_bytes: 0,
                max_skeleton_bytes,
            };
            io::copy(&mut parts.assemble()?, &mut io::sink())
        };
        assert_eq!(read(plain.len() as u64).unwrap(), 1 << 20);
        assert!(read(plain.len() as u64 - 1).is_err());
    }
}
