//! Images that are made of another by one layer more, in its OCI layout.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hostagent::image::digest::Digest;
use serde_json::{Value, json};

use crate::error::{BenchError, host};

/// The file of a blob.
pub fn blob(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs/sha256").join(digest.hex())
}

/// Adds an image called `tag`: that of `config`, and a layer more.
pub fn add(
    layout: &Path,
    config: &Digest,
    layer: &mut dyn Read,
    digest: Digest,
    tag: &str,
) -> Result<(), BenchError> {
    let failed = || host("make an image with a layer more");
    let mut file = File::create(blob(layout, &digest)).map_err(failed())?;
    io::copy(layer, &mut file).map_err(failed())?;
    let put = |bytes: &[u8]| -> Result<Digest, BenchError> {
        let digest = Digest::of(bytes);
        fs::write(blob(layout, &digest), bytes).map_err(failed())?;
        Ok(digest)
    };
    let mut config = read(&blob(layout, config))?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut();
    let diff_ids = diff_ids.ok_or_else(|| BenchError::Prepare("the image has no layers".into()))?;
    diff_ids.push(json!(digest));
    let mut layers = Vec::new();
    for digest in diff_ids.iter() {
        let hex = digest
            .as_str()
            .and_then(|text| text.strip_prefix("sha256:"));
        let path = layout.join("blobs/sha256").join(hex.unwrap_or_default());
        let size = fs::metadata(path).map_err(failed())?.len();
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest,
            "size": size,
        }));
    }
    let config = config.to_string();
    let manifest = manifest(put(config.as_bytes())?, config.len(), &layers);
    let mut index = read(&layout.join("index.json"))?;
    let entry = json!({
        "mediaType": MANIFEST_TYPE,
        "digest": put(manifest.as_bytes())?,
        "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    });
    if let Some(entries) = index["manifests"].as_array_mut() {
        entries.push(entry);
    }
    fs::write(layout.join("index.json"), index.to_string()).map_err(failed())
}

/// What a manifest is.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The manifest of an image.
pub fn manifest(config: Digest, config_bytes: usize, layers: &[Value]) -> String {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config,
            "size": config_bytes,
        },
        "layers": layers,
    });
    manifest.to_string()
}

fn read(path: &Path) -> Result<Value, BenchError> {
    let bytes = fs::read(path).map_err(host("read an image's layout"))?;
    serde_json::from_slice(&bytes).map_err(|error| BenchError::Prepare(error.to_string()))
}
