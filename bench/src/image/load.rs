//! Images taken in, beside their archive unpacked.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use hostagent::image::digest::Digest;
use hostagent::store::{Blob, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Setup;
use crate::comparison::{Better, Group};
use crate::error::{BenchError, host};

/// The second image has a layer of so much more.
const MORE_BYTES: usize = 1 << 20;

/// What is taken in, prepared once.
pub struct Images {
    directory: TempDir,
    mote: PathBuf,
    /// The size of the layer's archive.
    bytes: u64,
}

/// Seconds and bytes.
pub struct Turn {
    load: f64,
    tar: f64,
    second: f64,
    load_bytes: f64,
    second_bytes: f64,
}

impl Images {
    /// Makes an archive, the archive of its one layer, and an image with a layer more.
    pub fn prepare(setup: &Setup) -> Result<Self, BenchError> {
        let failed = host("prepare the images");
        let directory = TempDir::new_in(setup.directory).map_err(failed)?;
        let mut images = Self {
            mote: setup.mote.to_owned(),
            bytes: 0,
            directory,
        };
        let path = |name: &str| images.directory.path().join(name);
        let store = path("store");
        images.mote(&store, &["load", setup.reference])?;
        let opened = Store::open(&store).and_then(|store| store.images());
        let image = opened.ok().and_then(|mut images| images.pop());
        let image =
            image.ok_or_else(|| BenchError::Prepare("the image is not in the store".into()))?;
        let id = image.id.to_string();
        images.mote(
            &store,
            &["save", "-o", &path("image.tar").display().to_string(), &id],
        )?;
        images.mote(
            &store,
            &[
                "save",
                "-o",
                &format!("oci:{}", path("second").display()),
                &id,
            ],
        )?;
        let second = path("second");
        let layer = blob(&second, &image.diff_ids[0]);
        let bytes = fs::metadata(&layer)
            .map_err(host("measure the layer"))?
            .len();
        fs::copy(&layer, path("layer.tar")).map_err(host("copy the layer"))?;
        add_layer(&second, &image.id, &path("more"))?;
        images.bytes = bytes;
        Ok(images)
    }

    /// The size of the layer's archive in MiB.
    pub fn mib(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mote(&self, store: &Path, arguments: &[&str]) -> Result<(), BenchError> {
        let mut command = Command::new(&self.mote);
        command.args(arguments).env("MOTE_ROOT", store);
        succeed(&mut command)
    }

    /// One of each, each beginning with nothing that is not on disk.
    pub fn turn(&self) -> Result<Turn, BenchError> {
        let store = self.path("store");
        let fresh = |path: &Path| -> Result<(), BenchError> {
            if path.exists() {
                fs::remove_dir_all(path).map_err(host("remove the last turn"))?;
            }
            rustix::fs::sync();
            Ok(())
        };
        fresh(&store)?;
        let clock = Instant::now();
        let archive = self.path("image.tar").display().to_string();
        self.mote(&store, &["load", "-i", &archive])?;
        let load = clock.elapsed().as_secs_f64();
        let load_bytes = disk_bytes(&store);
        rustix::fs::sync();
        let clock = Instant::now();
        let second = format!("oci:{}:second", self.path("second").display());
        self.mote(&store, &["load", &second])?;
        let second = clock.elapsed().as_secs_f64();
        let second_bytes = disk_bytes(&store) - load_bytes;
        let tree = self.path("tree");
        fresh(&tree)?;
        fs::create_dir(&tree).map_err(host("make a directory"))?;
        let clock = Instant::now();
        succeed(
            Command::new("tar")
                .arg("xf")
                .arg(self.path("layer.tar"))
                .arg("-C")
                .arg(&tree),
        )?;
        succeed(Command::new("sync").arg("-f").arg(&tree))?;
        let tar = clock.elapsed().as_secs_f64();
        Ok(Turn {
            load,
            tar,
            second,
            load_bytes,
            second_bytes,
        })
    }

    /// The blob of the layer, in the store as the last turn left it.
    pub fn blob(&self) -> Result<Blob, BenchError> {
        let store = Store::open(&self.path("store"));
        let blob = store.and_then(|store| {
            let image = store.images()?.pop();
            let merged = image
                .map(|image| store.merged(&image.diff_ids))
                .transpose()?;
            Ok(merged.and_then(|merged| merged.layers.into_iter().next()))
        });
        match blob {
            Ok(Some(layer)) => Ok(layer.blob),
            _ => Err(BenchError::Prepare("the layer is not in the store".into())),
        }
    }
}

/// The times of all turns.
pub fn times(turns: &[Turn]) -> Group {
    let mut group = Group {
        title: "time to take an image in".to_owned(),
        unit: "s".to_owned(),
        better: Better::Less,
        rows: Vec::new(),
    };
    let all = |value: fn(&Turn) -> f64| turns.iter().map(value).collect::<Vec<f64>>();
    group.push(
        "load, beside tar x and sync",
        vec![all(|turn| turn.load), all(|turn| turn.tar)],
    );
    group.push(
        "one layer of 1 MiB more, beside the first",
        vec![all(|turn| turn.second), all(|turn| turn.load)],
    );
    group
}

/// What the store takes.
pub fn bytes(turns: &[Turn]) -> Group {
    let mut group = Group {
        title: "what it adds to the store".to_owned(),
        unit: "MiB".to_owned(),
        better: Better::Less,
        rows: Vec::new(),
    };
    let mib = |value: fn(&Turn) -> f64| {
        let values = turns
            .iter()
            .map(move |turn| value(turn) / f64::from(1 << 20));
        values.collect::<Vec<f64>>()
    };
    group.push(
        "one layer of 1 MiB more, beside the first",
        vec![mib(|turn| turn.second_bytes), mib(|turn| turn.load_bytes)],
    );
    group
}

fn succeed(command: &mut Command) -> Result<(), BenchError> {
    let path = PathBuf::from(command.get_program());
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| BenchError::Start {
        path: path.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::Ended {
        name: path.display().to_string(),
        status: output.status,
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn blob(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs/sha256").join(digest.hex())
}

/// Adds to a layout an image that is called `second` and has one layer more.
fn add_layer(layout: &Path, config: &Digest, scratch: &Path) -> Result<(), BenchError> {
    let failed = || host("make the second image");
    let content: Vec<u8> = (0..MORE_BYTES as u32)
        .flat_map(|n| [(n * 2_654_435_761) as u8])
        .collect();
    fs::create_dir(scratch)
        .and_then(|()| fs::write(scratch.join("more"), content))
        .map_err(failed())?;
    let tar = scratch.with_extension("tar");
    succeed(
        Command::new("tar")
            .arg("cf")
            .arg(&tar)
            .arg("-C")
            .arg(scratch)
            .arg("more"),
    )?;
    let layer = fs::read(&tar).map_err(failed())?;
    let put = |bytes: &[u8]| -> Result<Digest, BenchError> {
        let digest = Digest::of(bytes);
        let mut file = File::create(blob(layout, &digest)).map_err(failed())?;
        file.write_all(bytes).map_err(failed())?;
        Ok(digest)
    };
    let read = |path: &Path| -> Result<Value, BenchError> {
        let bytes = fs::read(path).map_err(failed())?;
        serde_json::from_slice(&bytes).map_err(|error| BenchError::Prepare(error.to_string()))
    };
    let added = put(&layer)?;
    let mut config = read(&blob(layout, config))?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut();
    let base: Vec<Value> = match diff_ids {
        Some(diff_ids) => {
            let base = diff_ids.clone();
            diff_ids.push(json!(added));
            base
        }
        None => return Err(BenchError::Prepare("the image has no layers".into())),
    };
    let mut layers = Vec::new();
    for digest in base.iter().chain([&json!(added)]) {
        let hex = digest
            .as_str()
            .and_then(|text| text.strip_prefix("sha256:"))
            .unwrap_or_default();
        let path = layout.join("blobs/sha256").join(hex);
        let size = fs::metadata(path).map_err(failed())?.len();
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest,
            "size": size,
        }));
    }
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": put(config.as_bytes())?,
            "size": config.len(),
        },
        "layers": layers,
    })
    .to_string();
    let mut index = read(&layout.join("index.json"))?;
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": put(manifest.as_bytes())?,
        "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "second"},
    });
    if let Some(entries) = index["manifests"].as_array_mut() {
        entries.push(entry);
    }
    fs::write(layout.join("index.json"), index.to_string()).map_err(failed())
}

/// What the files below a directory take on disk.
fn disk_bytes(directory: &Path) -> f64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => (metadata.blocks() * 512) as f64,
        Err(_) => 0.0,
    });
    sizes.sum()
}
