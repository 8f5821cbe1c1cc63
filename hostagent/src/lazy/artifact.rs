//! A converted image in a registry: what `mote push` stores beside the image it was made
//! from. docs/artifact.md describes it for others.
//!
//! It is an artifact (OCI image specification 1.1, "Guidelines for Artifact Usage"): a
//! manifest whose `subject` is the image's, whose configuration is a [`Converted`], and
//! whose layers are the blobs and their hash trees, as they are in the store.

use std::collections::BTreeMap;

use outboard::{BlobHash, Geometry};
use serde::{Deserialize, Serialize};

use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, MAX_LAYERS};
use crate::store::{BlobIdentity, CONVERTER_VERSION};

/// The type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.mote.image.v1";
/// Its configuration: a [`Converted`] as JSON.
pub const CONFIG_TYPE: &str = "application/vnd.mote.image.config.v1+json";
/// The bytes of a blob: EROFS, or a skeleton in zstd.
pub const BLOB_TYPE: &str = "application/vnd.mote.blob.v1";
/// The hash tree over a blob, as crate `outboard` describes it.
pub const OUTBOARD_TYPE: &str = "application/vnd.mote.outboard.v1";
/// The annotation of a blob or a hash tree that says which blob it is (of).
pub const HASH_ANNOTATION: &str = "io.mote.blob.hash";

/// The longest configuration: 256 layers take 100 KiB.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// The most ranges that are fetched first.
pub const MAX_ACCESSES: usize = 16 << 10;

/// An image as this converter makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Converted {
    /// [`CONVERTER_VERSION`].
    pub converter: u32,
    /// The id of the image: the digest of its configuration.
    pub image: Digest,
    /// The tree over the layers.
    pub metadata: StoredBlob,
    /// Base first.
    pub layers: Vec<ConvertedLayer>,
    /// What earlier starts of the image read, in order: fetched first.
    #[serde(default)]
    pub accesses: Vec<Access>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertedLayer {
    /// The digest of its tar stream.
    pub diff_id: Digest,
    /// How long that is, in bytes.
    pub tar_bytes: u64,
    /// What it was converted to.
    pub blob: StoredBlob,
    /// What else of the tar stream there is.
    pub skeleton: StoredBlob,
}

/// A blob, and what registries call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredBlob {
    /// Its BLAKE3 hash.
    pub hash: BlobHash,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub digest: Digest,
    /// The SHA-256 of its hash tree; none where that is empty.
    pub outboard: Option<Digest>,
}

/// A range of a blob that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Which of the blobs: 0 the metadata, then the layers'.
    pub blob: u32,
    /// The first group of 16 KiB.
    pub first_group: u64,
    /// How many.
    pub groups: u32,
}

/// Why a converted image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Its configuration is not one.
    #[error("its configuration cannot be read")]
    Json(#[from] serde_json::Error),
    /// It was made by another version.
    #[error("it was made by converter {found}; this is converter {CONVERTER_VERSION}")]
    Converter {
        /// Which.
        found: u32,
    },
    /// It is that of another image.
    #[error("it is made of other layers than the image, or of another image: {0}")]
    Other(&'static str),
}

impl StoredBlob {
    /// The blob itself.
    pub fn identity(&self) -> BlobIdentity {
        BlobIdentity {
            hash: self.hash,
            bytes: self.bytes,
        }
    }

    /// Its data in a registry.
    pub fn data_descriptor(&self) -> Descriptor {
        described(BLOB_TYPE, self.digest, self.bytes, self.hash)
    }

    /// Its hash tree in a registry.
    pub fn outboard_descriptor(&self) -> Option<Descriptor> {
        let bytes = Geometry::of(self.bytes).outboard_bytes();
        Some(described(OUTBOARD_TYPE, self.outboard?, bytes, self.hash))
    }
}

fn described(media_type: &str, digest: Digest, size: u64, hash: BlobHash) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: Some(BTreeMap::from([(
            HASH_ANNOTATION.to_owned(),
            hash.to_string(),
        )])),
        artifact_type: None,
        urls: None,
    }
}

impl Converted {
    /// Reads a configuration that should be that of `image` with these layers.
    pub fn parse(bytes: &[u8], image: Digest, diff_ids: &[Digest]) -> Result<Self, ArtifactError> {
        let mut converted: Self = serde_json::from_slice(bytes)?;
        if converted.converter != CONVERTER_VERSION {
            return Err(ArtifactError::Converter {
                found: converted.converter,
            });
        }
        if converted.image != image {
            return Err(ArtifactError::Other("its id is another"));
        }
        let layers = converted.layers.iter().map(|layer| layer.diff_id);
        if converted.layers.len() > MAX_LAYERS || !layers.eq(diff_ids.iter().copied()) {
            return Err(ArtifactError::Other("its layers are others"));
        }
        let lengths = converted.blobs().map(|blob| blob.bytes);
        if lengths
            .into_iter()
            .any(|bytes| i64::try_from(bytes).is_err())
        {
            return Err(ArtifactError::Other("a blob is longer than any file"));
        }
        // None has nothing: not even a skeleton, which is compressed.
        if converted.blobs().any(|blob| blob.bytes == 0) {
            return Err(ArtifactError::Other("a blob is empty"));
        }
        let trees = |blob: &StoredBlob| {
            blob.outboard.is_some() == (Geometry::of(blob.bytes).outboard_bytes() > 0)
        };
        if !converted.blobs().all(trees) {
            return Err(ArtifactError::Other("a blob has no hash tree"));
        }
        converted.accesses.truncate(MAX_ACCESSES);
        let disk = converted.disk().count();
        let valid = |access: &Access| (access.blob as usize) < disk;
        converted.accesses.retain(valid);
        Ok(converted)
    }

    /// The blobs of its disk, in their order there.
    pub fn disk(&self) -> impl Iterator<Item = &StoredBlob> {
        let layers = self.layers.iter().map(|layer| &layer.blob);
        std::iter::once(&self.metadata).chain(layers)
    }

    /// All its blobs: those of the disk, then the skeletons.
    pub fn blobs(&self) -> impl Iterator<Item = &StoredBlob> {
        self.disk()
            .chain(self.layers.iter().map(|layer| &layer.skeleton))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(seed: &str, bytes: u64) -> StoredBlob {
        StoredBlob {
            hash: BlobHash::of(seed.as_bytes()),
            bytes,
            digest: Digest::of(seed.as_bytes()),
            outboard: (bytes > 16 << 10).then(|| Digest::of(b"tree")),
        }
    }

    fn converted() -> Converted {
        Converted {
            converter: CONVERTER_VERSION,
            image: Digest::of(b"image"),
            metadata: blob("metadata", 8192),
            layers: vec![ConvertedLayer {
                diff_id: Digest::of(b"layer"),
                tar_bytes: 10_240,
                blob: blob("layer", 1 << 20),
                skeleton: blob("skeleton", 100),
            }],
            accesses: vec![Access {
                blob: 1,
                first_group: 3,
                groups: 2,
            }],
        }
    }

    fn parse(converted: &Converted) -> Result<Converted, ArtifactError> {
        let bytes = serde_json::to_vec(converted).unwrap();
        Converted::parse(&bytes, Digest::of(b"image"), &[Digest::of(b"layer")])
    }

    #[test]
    fn a_configuration_survives_being_written_and_read() {
        assert_eq!(parse(&converted()).unwrap(), converted());
    }

    #[test]
    fn one_of_another_image_version_or_shape_is_refused() {
        let changes: [fn(&mut Converted); 6] = [
            |converted| converted.converter += 1,
            |converted| converted.image = Digest::of(b"other"),
            |converted| converted.layers[0].diff_id = Digest::of(b"other"),
            |converted| converted.layers.clear(),
            |converted| converted.layers[0].blob.bytes = u64::MAX,
            |converted| converted.layers[0].blob.outboard = None,
        ];
        for change in changes {
            let mut changed = converted();
            change(&mut changed);
            parse(&changed).unwrap_err();
        }
        assert!(Converted::parse(b"{}", Digest::of(b""), &[]).is_err());
    }

    #[test]
    fn accesses_to_blobs_that_are_not_there_are_left_out() {
        let mut changed = converted();
        changed.accesses.push(Access {
            blob: 2,
            first_group: 0,
            groups: 1,
        });
        assert_eq!(parse(&changed).unwrap(), converted());
    }
}
