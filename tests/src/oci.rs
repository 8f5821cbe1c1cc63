//! Images made from the test image: other configuration, more layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI layout of one image, deleted when dropped.
pub struct Layout {
    directory: TempDir,
    manifest: Value,
    config: Value,
}

impl Layout {
    /// A copy of the test image, its blobs linked, not copied.
    pub fn from_test_image() -> Self {
        let reference = crate::image();
        let path = reference
            .strip_prefix("oci:")
            .expect("the test image is an OCI layout");
        let base = path.rsplit_once(':').map_or(path, |(base, _)| base);
        let base = Path::new(base);
        let directory = TempDir::new().expect("a temporary directory");
        let index = read_json(&base.join("index.json"));
        let manifest = read_json(&blob(base, &index["manifests"][0]["digest"]));
        let config = read_json(&blob(base, &manifest["config"]["digest"]));
        let this = Self {
            directory,
            manifest,
            config,
        };
        fs::create_dir_all(this.path().join("blobs/sha256")).expect("a directory");
        for layer in layers(&this.manifest) {
            let target = blob(this.path(), &layer["digest"]);
            std::os::unix::fs::symlink(blob(base, &layer["digest"]), target).expect("a link");
        }
        this
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Sets a field of the image configuration's `config`, such as `Cmd`.
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config["config"][field] = value;
        self
    }

    /// Leaves all layers out.
    pub fn without_layers(mut self) -> Self {
        self.manifest["layers"] = json!([]);
        self.config["rootfs"]["diff_ids"] = json!([]);
        self
    }

    /// Adds a layer that is the uncompressed `tar`.
    pub fn layer(mut self, tar: &[u8]) -> Self {
        let digest = self.write_blob(tar);
        let layer = json!({"mediaType": LAYER, "digest": digest, "size": tar.len()});
        self.manifest["layers"]
            .as_array_mut()
            .expect("a list of layers")
            .push(layer);
        self.config["rootfs"]["diff_ids"]
            .as_array_mut()
            .expect("a list of diff_ids")
            .push(json!(digest));
        self
    }

    /// The digest of the layer that was added last, which is its `diff_id` too.
    pub fn last_layer(&self) -> String {
        let layers = layers(&self.manifest);
        let digest = layers.last().and_then(|layer| layer["digest"].as_str());
        digest.expect("a layer").to_owned()
    }

    /// Writes configuration, manifest and index; returns the reference.
    pub fn finish(&mut self) -> String {
        let config = self.config.to_string();
        self.manifest["config"]["digest"] = json!(self.write_blob(config.as_bytes()));
        self.manifest["config"]["size"] = json!(config.len());
        let manifest = self.manifest.to_string();
        let entry = json!({
            "mediaType": MANIFEST,
            "digest": self.write_blob(manifest.as_bytes()),
            "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "test"},
        });
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        let write = |name: &str, text: String| {
            fs::write(self.path().join(name), text).expect("the layout can be written");
        };
        write("index.json", index.to_string());
        write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned());
        format!("oci:{}:test", self.path().display())
    }

    fn write_blob(&self, bytes: &[u8]) -> String {
        let digest = format!("sha256:{:x}", Sha256::digest(bytes));
        let path = blob(self.path(), &json!(digest));
        fs::write(path, bytes).expect("the blob can be written");
        digest
    }
}

/// A tar of what `script` makes in an empty directory.
pub fn tar(script: &str) -> Vec<u8> {
    let directory = TempDir::new().expect("a temporary directory");
    let status = Command::new("/bin/sh")
        .args(["-e", "-c", script])
        .current_dir(&directory)
        .status()
        .expect("sh can be started");
    assert!(status.success());
    let output = Command::new("tar")
        .args([
            "--create",
            "--file=-",
            "--numeric-owner",
            "--sort=name",
            ".",
        ])
        .current_dir(&directory)
        .output()
        .expect("tar can be started");
    assert!(output.status.success());
    output.stdout
}

/// The path of the blob that `digest` names.
pub fn blob(layout: &Path, digest: &Value) -> PathBuf {
    let digest = digest.as_str().expect("a digest");
    let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
    layout.join("blobs/sha256").join(hex)
}

fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

fn layers(manifest: &Value) -> Vec<Value> {
    let layers = manifest["layers"].as_array().expect("a list of layers");
    layers.clone()
}
