//! The JSON documents that lead to an image: index, manifest and descriptor.
//!
//! Source: OCI image specification 1.1, "Image Index" and "Image Manifest";
//! Docker's "image manifest version 2, schema 2" has the same fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::platform::Platform;

/// The longest index, manifest, configuration or other JSON document accepted.
/// Registries refuse manifests over 4 MiB (distribution specification, "Pushing
/// Manifests").
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// The most layers an image may have. Docker stops at 127.
pub const MAX_LAYERS: usize = 256;
/// The most entries of one index that are looked at.
pub const MAX_INDEX_ENTRIES: usize = 1024;

/// The tag, or the whole name, a descriptor in `index.json` goes by.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, as containerd and newer `docker save` write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Points at content by digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of content it is. Older tools leave it out.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// The length of the content in bytes.
    pub size: u64,
    /// Which machines a manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Names and notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What kind of artifact a manifest is, such as a signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Where else the content is. Layers that registries may not have are "foreign"
    /// or "nondistributable", and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
}

impl Descriptor {
    /// The names this descriptor goes by in an index.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [CONTAINERD_NAME, REF_NAME]
            .into_iter()
            .filter_map(|key| Some(self.annotations.as_ref()?.get(key)?.as_str()))
    }

    /// The tag, or the whole name, that `index.json` gives it.
    pub fn ref_name(&self) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(REF_NAME)?.as_str())
    }

    /// The whole name that containerd gives it.
    pub fn containerd_name(&self) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(CONTAINERD_NAME)?.as_str())
    }

    /// Whether it may lead to an image for this machine: only a platform that
    /// is named and is another rules that out. Attestations, which builders
    /// put beside images, name the platform `unknown/unknown`.
    pub fn may_run_here(&self) -> bool {
        self.platform.as_ref().is_none_or(Platform::is_ours)
    }
}

/// A list of manifests, or of further indexes.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    /// The entries, in order of preference.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// One image for one platform.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, base first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

/// Either document; they are told apart by what they contain, because the media
/// type is optional in both.
#[derive(Debug, Clone)]
pub enum Document {
    /// It has `manifests`.
    Index(Index),
    /// It has `config`.
    Manifest(Box<Manifest>),
}

/// Why a JSON document is not an index or a manifest.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or a field is missing or of the wrong kind.
    #[error("it is not a valid image index or manifest")]
    Json(#[from] serde_json::Error),
    /// A manifest of Docker's first schema, which carries no digests.
    #[error(
        "it is a Docker schema 1 manifest, which is not supported; save the image again with a current tool"
    )]
    Schema1,
    /// More layers than [`MAX_LAYERS`].
    #[error("it has {0} layers; at most {MAX_LAYERS} are supported")]
    TooManyLayers(usize),
    /// More entries than [`MAX_INDEX_ENTRIES`].
    #[error("it has {0} entries; at most {MAX_INDEX_ENTRIES} are supported")]
    TooManyEntries(usize),
}

impl Document {
    /// Reads an index or a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        /// Enough to see which of the documents it is.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            manifests: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = serde_json::from_slice(bytes)?;
        if probe.fs_layers.is_some() {
            return Err(DocumentError::Schema1);
        }
        if probe.manifests.is_some() {
            return Index::parse(bytes).map(Self::Index);
        }
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(DocumentError::TooManyLayers(manifest.layers.len()));
        }
        Ok(Self::Manifest(Box::new(manifest)))
    }
}

impl Index {
    /// Reads an index, such as `index.json` of an image layout.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let index: Self = serde_json::from_slice(bytes)?;
        if index.manifests.len() > MAX_INDEX_ENTRIES {
            return Err(DocumentError::TooManyEntries(index.manifests.len()));
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(platform: serde_json::Value) -> Descriptor {
        let value = json!({
            "digest": Digest::of(b""),
            "size": 0,
            "platform": platform,
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_index_and_a_manifest_are_told_apart_without_media_types() {
        let index = json!({"schemaVersion": 2, "manifests": []}).to_string();
        assert!(matches!(
            Document::parse(index.as_bytes()),
            Ok(Document::Index(_))
        ));
        let config = json!({"digest": Digest::of(b""), "size": 0});
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
        assert!(matches!(
            Document::parse(manifest.as_bytes()),
            Ok(Document::Manifest(_))
        ));
    }

    #[test]
    fn a_schema_1_manifest_and_too_many_layers_are_refused() {
        let schema1 = json!({"schemaVersion": 1, "fsLayers": []}).to_string();
        assert!(matches!(
            Document::parse(schema1.as_bytes()),
            Err(DocumentError::Schema1)
        ));
        let layer = json!({"digest": Digest::of(b""), "size": 0});
        let layers = vec![layer.clone(); MAX_LAYERS + 1];
        let many = json!({"config": layer, "layers": layers}).to_string();
        assert!(matches!(
            Document::parse(many.as_bytes()),
            Err(DocumentError::TooManyLayers(_))
        ));
    }

    #[test]
    fn only_a_platform_named_and_different_is_ruled_out() {
        let platform = |os, architecture| json!({"os": os, "architecture": architecture});
        assert!(descriptor(json!(null)).may_run_here());
        assert!(descriptor(platform("linux", "amd64")).may_run_here());
        assert!(!descriptor(platform("linux", "arm64")).may_run_here());
        assert!(!descriptor(platform("windows", "amd64")).may_run_here());
        assert!(!descriptor(platform("unknown", "unknown")).may_run_here());
    }
}
