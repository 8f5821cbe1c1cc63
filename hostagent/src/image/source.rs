//! An image at its source: found, its documents verified, its layers not yet read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::config::{ConfigError, ImageConfig};
use super::digest::Digest;
use super::layer::{LayerContent, LayerSource};
use super::manifest::{Descriptor, Document, DocumentError, MAX_DOCUMENT_BYTES, Manifest};
use super::name::ImageName;
use super::platform::{ARCHITECTURE, OPERATING_SYSTEM, Platform};
use super::region::FileRegion;
use crate::registry::RegistryError;

/// How deep indexes may nest: `index.json`, an index of platforms, and room for
/// one more.
const MAX_INDEX_DEPTH: usize = 4;
/// The most tags an error lists.
const MAX_TAGS_SHOWN: usize = 20;

/// An image whose manifest and configuration have been read and verified.
#[derive(Debug, Clone)]
pub struct SourceImage {
    /// The names the source gives it.
    pub names: Vec<ImageName>,
    /// The digest of the manifest; a docker archive may have none.
    pub manifest: Option<VerifiedDocument>,
    /// The configuration as it is stored. Its digest is the image id.
    pub config_document: VerifiedDocument,
    /// The configuration.
    pub config: ImageConfig,
    /// The layers, base first.
    pub layers: Vec<LayerSource>,
    /// How many of them to read at a time.
    pub parallel: usize,
    /// Where it is from, as `repository@digest`, if that is a registry.
    pub origin: Option<ImageName>,
}

impl SourceImage {
    /// Its manifest, if it has one, and its configuration.
    pub fn documents(&self) -> impl Iterator<Item = &VerifiedDocument> {
        self.manifest.iter().chain([&self.config_document])
    }
}

/// Bytes and their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedDocument {
    /// The SHA-256 of `bytes`.
    pub digest: Digest,
    /// The document.
    pub bytes: Vec<u8>,
}

/// Why an image could not be found at its source, or not be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file or directory cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory is not an image layout.
    #[error("{place} is not an OCI image layout: {reason}")]
    NotALayout {
        /// What was looked at.
        place: String,
        /// What is missing.
        reason: String,
    },
    /// The archive has neither `manifest.json` nor an image layout.
    #[error(
        "{place} is not an archive of images: it has no manifest.json and no index.json; `docker save` and `skopeo copy … docker-archive:FILE` write such archives"
    )]
    NotAnArchive {
        /// The archive.
        place: String,
    },
    /// The archive's entries cannot be listed.
    #[error("cannot read the archive {place}")]
    Archive {
        /// The archive.
        place: String,
        /// Why.
        source: super::archive::ArchiveError,
    },
    /// No image of that name.
    #[error("{place} has no image {wanted:?}; it has {available}")]
    TagNotFound {
        /// The layout or archive.
        place: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: Available,
    },
    /// Several images and no way to choose.
    #[error("{place} has several images; name one of {available}")]
    Ambiguous {
        /// The layout or archive.
        place: String,
        /// What there is.
        available: Available,
    },
    /// No image for this machine.
    #[error("{place} has no image for {OPERATING_SYSTEM}/{ARCHITECTURE}; it has {found}")]
    NoPlatform {
        /// The index.
        place: String,
        /// What there is.
        found: String,
    },
    /// Indexes that refer to indexes without end.
    #[error("the image index {digest} nests more than {MAX_INDEX_DEPTH} deep")]
    TooDeep {
        /// The index at which reading stopped.
        digest: Digest,
    },
    /// A file that a manifest names is not there.
    #[error("{place} has no {what}")]
    Missing {
        /// The layout or archive.
        place: String,
        /// The file.
        what: String,
    },
    /// A file could not be read, or is longer than such a file may be.
    #[error("cannot read {what} of {place}")]
    Read {
        /// The layout or archive.
        place: String,
        /// The file.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A blob's length is not the one its descriptor gives.
    #[error(
        "{what} {digest} is truncated or damaged: it has {found} bytes, its descriptor says {expected}"
    )]
    Size {
        /// Such as "the manifest".
        what: &'static str,
        /// The blob.
        digest: Digest,
        /// What the descriptor says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// A blob's digest is not the one it is stored under.
    #[error("{what} is corrupt: expected {expected}, found {found}")]
    Digest {
        /// Such as "the manifest".
        what: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A document that is not what it should be.
    #[error("cannot use {what} of {place}")]
    Document {
        /// The layout or archive.
        place: String,
        /// The document.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// An image configuration that cannot be used.
    #[error("cannot use the image configuration {digest}")]
    Config {
        /// The configuration.
        digest: Digest,
        /// Why.
        source: ConfigError,
    },
    /// Manifest and configuration disagree about the number of layers.
    #[error("the manifest has {layers} layers, the image configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The registry did not give it.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// A manifest of something else.
    #[error(
        "{digest} is no image: its configuration is of type {media_type:?}; it is another kind of artifact"
    )]
    NotAnImage {
        /// The manifest.
        digest: Digest,
        /// What its configuration is.
        media_type: String,
    },
    /// A layer that no registry may have.
    #[error(
        "layer {digest} is foreign: it is not to be had from registries, only from whoever made it; such images, of Windows mostly, are not supported"
    )]
    Foreign {
        /// The layer.
        digest: Digest,
    },
    /// A layer of something else.
    #[error("layer {digest} is of type {media_type:?}, which is no layer of an image")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// What it is.
        media_type: String,
    },
    /// A layer that only an agent with keys could read.
    #[error("layer {digest} is encrypted, which is not supported")]
    Encrypted {
        /// The layer.
        digest: Digest,
    },
}

/// The names of the images of a layout or archive, for an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Available(pub Vec<String>);

impl std::fmt::Display for Available {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no named images");
        }
        for (index, name) in self.0.iter().take(MAX_TAGS_SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let name: String = name.chars().take(300).collect();
            write!(f, "{separator}{name:?}")?;
        }
        match self.0.len().saturating_sub(MAX_TAGS_SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A place that holds blobs by digest.
pub(super) trait Blobs {
    /// What to call it in errors.
    fn place(&self) -> &str;
    /// A manifest or an index, verified.
    fn manifest(&self, descriptor: &Descriptor) -> Result<VerifiedDocument, SourceError> {
        self.document(descriptor, "the manifest")
    }
    /// Another document, verified.
    fn document(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
    ) -> Result<VerifiedDocument, SourceError>;
    /// A layer, not read yet.
    fn layer(&self, descriptor: &Descriptor) -> Result<Arc<dyn LayerContent>, SourceError>;
    /// How many layers to read at a time.
    fn parallel(&self) -> usize {
        LOCAL_PARALLEL
    }
}

/// Layers of a file that are converted at a time. Each has threads that hash beside it.
pub(super) const LOCAL_PARALLEL: usize = 2;

/// Follows a descriptor of `index.json` to an image for this machine.
pub(super) fn image_of(
    blobs: &dyn Blobs,
    descriptor: &Descriptor,
    names: Vec<ImageName>,
) -> Result<SourceImage, SourceError> {
    image_from(blobs, blobs.manifest(descriptor)?, names)
}

/// Follows a manifest or an index to an image for this machine.
pub(super) fn image_from(
    blobs: &dyn Blobs,
    document: VerifiedDocument,
    names: Vec<ImageName>,
) -> Result<SourceImage, SourceError> {
    let (document, manifest) = manifest_from(blobs, document)?;
    check_media_types(&document, &manifest)?;
    let config_document = blobs.document(&manifest.config, "the image configuration")?;
    let config = parse_config(&config_document)?;
    check_layer_count(manifest.layers.len(), &config)?;
    let layers = manifest
        .layers
        .iter()
        .zip(&config.diff_ids)
        .map(|(layer, diff_id)| {
            Ok(LayerSource {
                diff_id: *diff_id,
                blob: Some(layer.digest),
                content: blobs.layer(layer)?,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(SourceImage {
        names,
        manifest: Some(document),
        config_document,
        config,
        layers,
        parallel: blobs.parallel(),
        origin: None,
    })
}

pub(super) fn parse_config(document: &VerifiedDocument) -> Result<ImageConfig, SourceError> {
    ImageConfig::parse(&document.bytes).map_err(|source| SourceError::Config {
        digest: document.digest,
        source,
    })
}

pub(super) fn check_layer_count(layers: usize, config: &ImageConfig) -> Result<(), SourceError> {
    let diff_ids = config.diff_ids.len();
    if layers == diff_ids {
        return Ok(());
    }
    Err(SourceError::LayerCount { layers, diff_ids })
}

/// The manifest a document leads to, through indexes if need be.
fn manifest_from(
    blobs: &dyn Blobs,
    mut document: VerifiedDocument,
) -> Result<(VerifiedDocument, Manifest), SourceError> {
    for _ in 0..MAX_INDEX_DEPTH {
        let parsed = Document::parse(&document.bytes).map_err(|source| SourceError::Document {
            place: blobs.place().to_owned(),
            what: document.digest.to_string(),
            source,
        })?;
        match parsed {
            Document::Manifest(manifest) => return Ok((document, *manifest)),
            Document::Index(index) => {
                let place = format!("the image index {} of {}", document.digest, blobs.place());
                document = blobs.manifest(for_this_machine(&index.manifests, &place)?)?;
            }
        }
    }
    Err(SourceError::TooDeep {
        digest: document.digest,
    })
}

/// What the configuration of an image may call itself. Old tools leave it out.
const CONFIG_TYPES: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "",
];

/// Whether the manifest is that of an image, and its layers are such as may be fetched.
fn check_media_types(document: &VerifiedDocument, manifest: &Manifest) -> Result<(), SourceError> {
    if !CONFIG_TYPES.contains(&manifest.config.media_type.as_str()) {
        return Err(SourceError::NotAnImage {
            digest: document.digest,
            media_type: shown(&manifest.config.media_type),
        });
    }
    for layer in &manifest.layers {
        let media_type = layer.media_type.as_str();
        let digest = layer.digest;
        if media_type.ends_with("+encrypted") {
            return Err(SourceError::Encrypted { digest });
        }
        let elsewhere = layer.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        if elsewhere || media_type.contains("foreign") || media_type.contains("nondistributable") {
            return Err(SourceError::Foreign { digest });
        }
        // What it is compressed with is told by its bytes, not by this.
        let known = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar",
        ];
        if !media_type.is_empty() && !known.iter().any(|known| media_type.starts_with(known)) {
            return Err(SourceError::LayerType {
                digest,
                media_type: shown(media_type),
            });
        }
    }
    Ok(())
}

fn shown(media_type: &str) -> String {
    media_type.chars().take(100).collect()
}

/// The first entry for this machine, one that every such machine can run before one that
/// this processor happens to have all for: an index is in order of preference.
pub(super) fn for_this_machine<'a>(
    entries: &'a [Descriptor],
    place: &str,
) -> Result<&'a Descriptor, SourceError> {
    let named = |fits: fn(&Platform) -> bool| {
        let mut entries = entries.iter();
        entries.find(|entry| entry.platform.as_ref().is_some_and(fits))
    };
    let any = || entries.iter().find(|entry| entry.may_run_here());
    named(Platform::is_baseline)
        .or_else(|| named(Platform::is_ours))
        .or_else(any)
        .ok_or_else(|| SourceError::NoPlatform {
            place: place.to_owned(),
            found: platforms(entries),
        })
}

fn platforms(entries: &[Descriptor]) -> String {
    let found: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .take(MAX_TAGS_SHOWN)
        .map(Platform::to_string)
        .collect();
    if found.is_empty() {
        "none".to_owned()
    } else {
        found.join(", ")
    }
}

/// `region`, if it has the length that its descriptor gives.
pub(super) fn sized(
    region: FileRegion,
    descriptor: &Descriptor,
    what: &'static str,
) -> Result<FileRegion, SourceError> {
    if region.length() != descriptor.size {
        return Err(SourceError::Size {
            what,
            digest: descriptor.digest,
            expected: descriptor.size,
            found: region.length(),
        });
    }
    Ok(region)
}

/// A document whose digest is known only once it is read.
pub(super) fn read_document(
    place: &str,
    region: &FileRegion,
    what: &str,
) -> Result<VerifiedDocument, SourceError> {
    let bytes = region
        .read_to_vec(MAX_DOCUMENT_BYTES)
        .map_err(|source| SourceError::Read {
            place: place.to_owned(),
            what: what.to_owned(),
            source,
        })?;
    Ok(VerifiedDocument {
        digest: Digest::of(&bytes),
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chosen(platforms: &[(&str, &str)]) -> Result<usize, SourceError> {
        let entries: Vec<Descriptor> = platforms
            .iter()
            .zip(0..)
            .map(|((architecture, variant), number)| {
                let platform = json!({
                    "os": "linux", "architecture": architecture, "variant": variant
                });
                let digest = Digest::of(&[number]);
                let entry = json!({"digest": digest, "size": 0, "platform": platform});
                serde_json::from_value(entry).unwrap()
            })
            .collect();
        let entry = for_this_machine(&entries, "the index")?;
        Ok(entries
            .iter()
            .position(|one| one.digest == entry.digest)
            .unwrap())
    }

    #[test]
    fn an_index_gives_the_image_that_every_machine_of_this_kind_can_run() {
        let arm = ("arm64", "v8");
        assert_eq!(chosen(&[arm, ("amd64", "v2"), ("amd64", "")]).unwrap(), 2);
        assert_eq!(chosen(&[("amd64", "v4"), ("amd64", "v1")]).unwrap(), 1);
        assert_eq!(chosen(&[("amd64", ""), ("amd64", "")]).unwrap(), 0);
        let error = chosen(&[arm, ("amd64", "v9")]).unwrap_err();
        assert!(
            error.to_string().contains("linux/arm64/v8, linux/amd64/v9"),
            "{error}"
        );
    }
}
