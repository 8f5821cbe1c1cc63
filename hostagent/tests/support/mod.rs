//! Images made in the test, and the real `mote` run on them.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hostagent::image::digest::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A layer: its tar stream.
pub fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        add_file(&mut builder, name, content);
    }
    builder.into_inner().unwrap()
}

/// Adds a file under a name that the `tar` crate would refuse to write.
pub fn add_file(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

/// Adds a symbolic or hard link.
pub fn add_link(
    builder: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    name: &str,
    target: &str,
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o777);
    builder.append_link(&mut header, name, target).unwrap();
}

/// Bytes that differ from seed to seed and do not compress away.
pub fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Flips one bit of a file.
pub fn flip_bit(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Plain,
    Gzip,
    Zstd,
}

impl Stored {
    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }
}

/// What a record of the store says.
pub fn read_record(file: &Path) -> Value {
    let bytes = std::fs::read(file).unwrap();
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    serde_json::from_slice(&bytes[..end]).unwrap()
}

/// Writes a record of the store that has the hash that it should.
pub fn write_record(file: &Path, record: &Value) {
    let record = format!("{record}\n");
    let hash = outboard::BlobHash::of(record.as_bytes());
    let checksum = serde_json::json!({ "hash": hash });
    std::fs::write(file, format!("{record}{checksum}\n")).unwrap();
}

/// An image configuration over these layers.
pub fn config(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-11-01T12:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// An OCI image layout in a temporary directory.
pub struct Layout {
    pub directory: TempDir,
    manifests: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let layout = Self {
            directory: TempDir::new().unwrap(),
            manifests: Vec::new(),
        };
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        layout.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        layout.write_index();
        layout
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// `oci:DIR` or `oci:DIR:TAG`.
    pub fn reference(&self, tag: &str) -> String {
        let separator = if tag.is_empty() { "" } else { ":" };
        format!("oci:{}{separator}{tag}", self.path().display())
    }

    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path().join("blobs/sha256").join(digest.hex())
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    /// Stores bytes and describes them.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.blob_path(digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Stores an image and describes its manifest.
    pub fn image(&self, config: &Value, layers: &[Vec<u8>], stored: Stored) -> Value {
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        // The media type is deliberately the same whatever the compression.
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| {
                self.blob(
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    &stored.pack(layer),
                )
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.manifest(&manifest)
    }

    pub fn manifest(&self, manifest: &Value) -> Value {
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    /// Lists a descriptor in `index.json` under a tag.
    pub fn tag(&mut self, mut descriptor: Value, tag: &str) {
        if !tag.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        self.manifests.push(descriptor);
        self.write_index();
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        self.write("index.json", index.to_string().as_bytes());
    }

    /// A layout with one image, tagged.
    pub fn with_image(layers: &[Vec<u8>], stored: Stored, tag: &str) -> Self {
        let mut layout = Self::new();
        let descriptor = layout.image(&config(layers), layers, stored);
        layout.tag(descriptor, tag);
        layout
    }
}

/// A store of its own, and `mote` on it.
pub struct Mote {
    pub root: TempDir,
    assets: TempDir,
    /// Where its configuration is, if that is not the machine's.
    pub config: Option<PathBuf>,
}

/// How `mote` ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Asserts that it failed as mote fails, and says so in these words.
    #[track_caller]
    pub fn expect_failure(self, words: &[&str]) -> Self {
        let run = self.expect(125);
        for word in words {
            assert!(run.stderr.contains(word), "{word:?} is not in {run:#?}");
        }
        assert!(!run.stderr.contains("panicked"), "{run:#?}");
        run
    }

    /// The documents that `--format json` printed.
    pub fn json(&self) -> Vec<Value> {
        let lines = self.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Mote {
    pub fn new() -> Self {
        Self {
            root: TempDir::new().unwrap(),
            assets: TempDir::new().unwrap(),
            config: None,
        }
    }

    /// The same in memory, if there is such a directory: nothing waits for a disk.
    pub fn in_memory() -> Self {
        let new = || TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
        Self {
            root: new().unwrap(),
            assets: new().unwrap(),
            config: None,
        }
    }

    pub fn assets(&self) -> &Path {
        self.assets.path()
    }

    /// Installs a kernel and a VMM that do nothing.
    pub fn install_idle(&self) {
        // An ELF header and nothing else: enough to be taken for a kernel.
        let mut kernel = vec![0; 64];
        kernel[..6].copy_from_slice(b"\x7fELF\x02\x01");
        kernel[18] = 62;
        std::fs::write(self.assets().join("vmlinux"), kernel).unwrap();
        std::fs::write(self.assets().join("initrd"), b"").unwrap();
        self.install_vmm("exit 3");
    }

    /// Installs a script as the VMM.
    pub fn install_vmm(&self, script: &str) {
        let text = self.assets().join("text");
        std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        // By another process: a test that forks while this one has the file open for
        // writing would keep it from being executed (ETXTBSY).
        let mut install = Command::new("install");
        install.arg("-m755").arg(&text);
        let path = self.assets().join("mote-vmm");
        assert!(install.arg(&path).status().unwrap().success());
    }

    /// `mote` with these arguments, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mote"));
        command
            .args(arguments)
            .env("MOTE_ROOT", self.root.path())
            .env("MOTE_ASSETS", self.assets.path())
            .env("MOTE_VMM", self.assets.path().join("mote-vmm"))
            .stdin(Stdio::null());
        if let Some(config) = &self.config {
            command.env("MOTE_CONFIG", config);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Run {
        Run::of(self.command(arguments).output().unwrap())
    }

    /// Loads and returns what was loaded.
    #[track_caller]
    pub fn load(&self, reference: &str) -> Value {
        let run = self.run(&["load", "--format", "json", reference]).expect(0);
        let mut documents = run.json();
        assert_eq!(documents.len(), 1, "{run:?}");
        documents.remove(0)
    }

    /// The names of what is loaded, sorted.
    pub fn images(&self) -> Vec<String> {
        let run = self.run(&["images", "--format", "json"]).expect(0);
        let name = |image: &Value| {
            let text = |key: &str| image[key].as_str().unwrap().to_owned();
            format!("{}:{}", text("Repository"), text("Tag"))
        };
        let mut names: Vec<String> = run.json().iter().map(name).collect();
        names.sort();
        names
    }

    /// Asserts that nothing half-made is in the store: nothing in `staging`, no
    /// lock, and every layer and disk whole.
    #[track_caller]
    pub fn assert_consistent(&self) {
        let names = |path: &str| -> Vec<String> {
            let Ok(entries) = std::fs::read_dir(self.root.path().join(path)) else {
                return Vec::new();
            };
            let name = |entry: std::io::Result<std::fs::DirEntry>| {
                entry.unwrap().file_name().into_string().unwrap()
            };
            entries.map(name).collect()
        };
        assert_eq!(names("staging"), [""; 0], "left in staging");
        assert_eq!(names("locks"), [""; 0], "left in locks");
        let store = hostagent::store::Store::open(self.root.path()).unwrap();
        for image in store.images().unwrap() {
            store.verify(&image).unwrap();
        }
        for layer in names("layers/v1") {
            let diff_id = Digest::from_hex(layer.strip_suffix(".json").unwrap()).unwrap();
            assert!(store.layer(diff_id).unwrap().is_some(), "{layer}");
        }
    }

    /// The directory of a layer's blob.
    pub fn layer_blob(&self, diff_id: Digest) -> PathBuf {
        let record = format!("layers/v1/{}.json", diff_id.hex());
        self.blob_of(&self.root.path().join(record))
    }

    /// The directories of the blobs over layers.
    pub fn disk_blobs(&self) -> Vec<PathBuf> {
        let records = std::fs::read_dir(self.root.path().join("disks/v1")).unwrap();
        records
            .map(|record| self.blob_of(&record.unwrap().path()))
            .collect()
    }

    fn blob_of(&self, record: &Path) -> PathBuf {
        let record = read_record(record);
        let hash = record["blob"]["hash"].as_str().unwrap();
        let hex = hash.strip_prefix("blake3:").unwrap();
        self.root.path().join("blobs").join(hex)
    }

    /// How many layers are in the store.
    pub fn layer_count(&self) -> usize {
        let entries = std::fs::read_dir(self.root.path().join("layers/v1"));
        entries.map_or(0, Iterator::count)
    }
}
