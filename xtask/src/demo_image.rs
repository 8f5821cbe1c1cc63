//! The image of the demonstration and of the end-to-end tests: a small Debian
//! with Python, nginx and Redis, as an OCI layout in the cache.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{cache, debian_root, packages, progress};

/// The Debian release that the image holds, whatever this machine runs.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "nginx-light,python3-minimal,redis-server";
/// The image's name in its layout.
const TAG: &str = "debian";
/// What the image does when it is told nothing else.
pub const COMMAND: &str = "/usr/local/bin/demo";
const SCRIPT: &str = include_str!("demo.sh");

const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The image, in an OCI layout.
#[derive(Debug)]
pub struct DemoImage {
    directory: PathBuf,
}

impl DemoImage {
    /// What `mote` calls it.
    pub fn reference(&self) -> String {
        format!("oci:{}:{TAG}", self.directory.display())
    }
}

/// The image from the cache, made if it is not there.
pub fn fetch() -> Result<DemoImage> {
    let inputs = format!("{SUITE}\n{PACKAGES}\n{SCRIPT}");
    let key = format!("{:x}", Sha256::digest(inputs));
    let directory = cache::entry(&format!("demo-image-{}", &key[..16]), |directory| {
        packages::require(&packages::FOR_DEMO_IMAGE)?;
        let _step = progress::step("building the demo image from Debian packages");
        let mut layout = Layout::new(directory)?;
        layout.add_layer(TAR_LAYER, |to| debian_root::write(SUITE, PACKAGES, to))?;
        layout.add_layer(GZIP_LAYER, script)?;
        layout.finish(&json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": [COMMAND],
            "WorkingDir": "/",
        }))
    })?;
    Ok(DemoImage { directory })
}

/// Writes a layer with the script of the demonstration.
fn script(to: &mut dyn Write) -> Result<()> {
    debian_root::write_program(COMMAND, SCRIPT, to)
}

/// An OCI image layout being written (image-spec 1.1, `image-layout.md`).
struct Layout {
    directory: PathBuf,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
}

impl Layout {
    fn new(directory: &Path) -> Result<Self> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            layers: Vec::new(),
            diff_ids: Vec::new(),
        })
    }

    /// Adds a layer whose tar stream `write` writes.
    fn add_layer(
        &mut self,
        media_type: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let temporary = self.directory.join("layer");
        let failed = || format!("cannot write {}", temporary.display());
        let file = BufWriter::new(File::create(&temporary).with_context(failed)?);
        let blob = Hashing::new(file);
        let (blob, diff_id) = if media_type == GZIP_LAYER {
            let mut tar = Hashing::new(GzEncoder::new(blob, Compression::default()));
            write(&mut tar)?;
            let diff_id = tar.digest();
            (tar.to.finish().with_context(failed)?, diff_id)
        } else {
            let mut blob = blob;
            write(&mut blob)?;
            let diff_id = blob.digest();
            (blob, diff_id)
        };
        let (digest, size) = (blob.digest(), blob.length);
        blob.to.into_inner().with_context(failed)?;
        fs::rename(&temporary, self.blob(&digest)).with_context(failed)?;
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": size});
        self.layers.push(descriptor);
        self.diff_ids.push(diff_id);
        Ok(())
    }

    fn finish(self, config: &Value) -> Result<()> {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        let config = self.add_json("application/vnd.oci.image.config.v1+json", &config)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config,
            "layers": self.layers,
        });
        let mut manifest = self.add_json(media_type, &manifest)?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": TAG});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        self.write("index.json", index.to_string().as_bytes())?;
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// Adds a JSON blob and returns its descriptor.
    fn add_json(&self, media_type: &str, value: &Value) -> Result<Value> {
        let text = value.to_string();
        let digest = format!("sha256:{:x}", Sha256::digest(&text));
        let path = self.blob(&digest);
        fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": text.len()}))
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.directory.join("blobs/sha256").join(hex)
    }
}

/// Hashes and counts what passes to the writer behind it.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    length: u64,
}

impl<W> Hashing<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            length: 0,
        }
    }

    fn digest(&self) -> String {
        format!("sha256:{:x}", self.hash.clone().finalize())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_of_a_layout_has_the_digest_and_size_it_is_known_by() {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(directory.path()).unwrap();
        layout.add_layer(TAR_LAYER, script).unwrap();
        layout.add_layer(GZIP_LAYER, script).unwrap();
        // Both hold the same tar.
        assert_eq!(layout.diff_ids[0], layout.diff_ids[1]);
        assert_eq!(layout.layers[0]["digest"], layout.diff_ids[0].as_str());
        layout.finish(&json!({"Cmd": ["sh"]})).unwrap();
        let blobs = directory.path().join("blobs/sha256");
        let mut count = 0;
        for blob in fs::read_dir(&blobs).unwrap() {
            let blob = blob.unwrap();
            let digest = format!("{:x}", Sha256::digest(fs::read(blob.path()).unwrap()));
            assert_eq!(blob.file_name().to_str(), Some(digest.as_str()));
            count += 1;
        }
        assert_eq!(count, 4);
        assert!(!directory.path().join("layer").exists());
        let index = fs::read(directory.path().join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let name = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
        assert_eq!(name, TAG);
    }
}
