//! Images taken in, beside their archive unpacked.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use hostagent::image::digest::Digest;
use hostagent::store::{Blob, Store};
use rustix::fs::Advice;
use tempfile::TempDir;

use super::random::RandomLayer;
use super::{Setup, guests, layout, reads};
use crate::comparison::{Better, Group};
use crate::error::{BenchError, host};

/// The second image has so much more.
const MORE: RandomLayer = RandomLayer {
    files: 1,
    file_bytes: 1 << 20,
};
/// With the first image, 1 GiB.
const LARGE: RandomLayer = RandomLayer {
    files: 51,
    file_bytes: 16 << 20,
};

/// The titles of the groups, and their rows.
pub const TIMES: &str = "time to take an image in";
/// See [`TIMES`].
pub const BYTES: &str = "what it adds to the store";
/// See [`TIMES`].
pub const LOAD: &str = "load, beside tar x and sync";
/// See [`TIMES`].
pub const SECOND: &str = "one layer of 1 MiB more, beside the first";

/// The layout with all images.
const LAYOUT: &str = "layout";
/// An archive with the first image's layer and one of 1 MiB.
const SECOND_ARCHIVE: &str = "second.tar";

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
    /// Makes an archive, the archive of its one layer, and images with a layer more.
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
        let archive = path(guests::ARCHIVE).display().to_string();
        images.mote(&store, &["save", "-o", &archive, &id])?;
        let layouts = format!("oci:{}", path(LAYOUT).display());
        images.mote(&store, &["save", "-o", &layouts, &id])?;
        let layer = layout::blob(&path(LAYOUT), &image.diff_ids[0]);
        let bytes = fs::metadata(&layer)
            .map_err(host("measure the layer"))?
            .len();
        fs::copy(&layer, path(guests::LAYER)).map_err(host("copy the layer"))?;
        for (layer, tag) in [(MORE, "second"), (LARGE, "large")] {
            let digest = layer.digest()?;
            layout::add(&path(LAYOUT), &image.id, &mut layer.reader(0), digest, tag)?;
        }
        let second = format!("{layouts}:second");
        images.mote(&store, &["load", &second])?;
        let opened = Store::open(&store).and_then(|store| store.images());
        let all = opened.unwrap_or_default().into_iter();
        let second = all.map(|image| image.id).find(|found| *found != image.id);
        let second =
            second.ok_or_else(|| BenchError::Prepare("the second image is not there".into()))?;
        let archive = path(SECOND_ARCHIVE).display().to_string();
        images.mote(&store, &["save", "-o", &archive, &second.to_string()])?;
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
        mote(&self.mote, store, arguments)
    }

    /// Puts an image of 1 GiB into a registry, converted too; where a guest's benchmark finds
    /// it and all else that it needs.
    pub fn for_guests(&self) -> Result<&Path, BenchError> {
        let store = self.path("pushed");
        let image = format!("oci:{}:large", self.path(LAYOUT).display());
        self.mote(&store, &["load", &image])?;
        let opened = Store::open(&store).and_then(|store| store.images());
        let id = opened.ok().and_then(|images| Some(images.first()?.id));
        let id: Digest = id.ok_or_else(|| BenchError::Prepare("nothing was loaded".into()))?;
        let registry = guests::Registry::serve(&self.path(guests::REGISTRY))?;
        self.mote(&store, &["tag", &id.to_string(), &registry.image()])?;
        self.mote(&store, &["push", &registry.image()])?;
        fs::remove_dir_all(store).map_err(host("remove what was pushed"))?;
        Ok(self.directory.path())
    }

    /// One of each, each beginning with nothing that is not on disk.
    pub fn turn(&self) -> Result<Turn, BenchError> {
        let store = self.path("store");
        let load = load(&self.mote, &store, &self.path(guests::ARCHIVE))?;
        let load_bytes = disk_bytes(&store);
        rustix::fs::sync();
        let clock = Instant::now();
        let second = self.path(SECOND_ARCHIVE).display().to_string();
        self.mote(&store, &["load", "-i", &second])?;
        let second = clock.elapsed().as_secs_f64();
        let second_bytes = disk_bytes(&store) - load_bytes;
        let tar = unpack(&self.path(guests::LAYER), &self.path("tree"))?;
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
        title: TIMES.to_owned(),
        unit: "s".to_owned(),
        better: Better::Less,
        rows: Vec::new(),
    };
    let all = |value: fn(&Turn) -> f64| turns.iter().map(value).collect::<Vec<f64>>();
    group.push(LOAD, vec![all(|turn| turn.load), all(|turn| turn.tar)]);
    group.push(SECOND, vec![all(|turn| turn.second), all(|turn| turn.load)]);
    group
}

/// What the store takes.
pub fn bytes(turns: &[Turn]) -> Group {
    let mut group = Group {
        title: BYTES.to_owned(),
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
        SECOND,
        vec![mib(|turn| turn.second_bytes), mib(|turn| turn.load_bytes)],
    );
    group
}

/// Removes what is left of the last turn, and waits until nothing is to be written.
pub fn remove(path: &Path) -> Result<(), BenchError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(host("remove the last turn"))?;
    }
    rustix::fs::sync();
    Ok(())
}

/// Has a file read from the disk when it is next read.
pub fn forget(path: &Path) -> Result<(), BenchError> {
    rustix::fs::sync();
    let file = fs::File::open(path).map_err(host("open what is taken in"))?;
    reads::advise(&file, Advice::DontNeed)
}

/// The seconds that it takes to load an archive into an empty store.
pub fn load(program: &Path, store: &Path, archive: &Path) -> Result<f64, BenchError> {
    remove(store)?;
    let clock = Instant::now();
    mote(
        program,
        store,
        &["load", "-i", &archive.display().to_string()],
    )?;
    Ok(clock.elapsed().as_secs_f64())
}

/// The seconds that it takes to unpack a layer, until it is on disk.
pub fn unpack(layer: &Path, tree: &Path) -> Result<f64, BenchError> {
    remove(tree)?;
    fs::create_dir(tree).map_err(host("make a directory"))?;
    let clock = Instant::now();
    succeed(Command::new("tar").arg("xf").arg(layer).arg("-C").arg(tree))?;
    succeed(Command::new("sync").arg("-f").arg(tree))?;
    Ok(clock.elapsed().as_secs_f64())
}

/// Runs mote with this store to its end.
pub fn mote(program: &Path, store: &Path, arguments: &[&str]) -> Result<(), BenchError> {
    let mut command = Command::new(program);
    command.args(arguments).env("MOTE_ROOT", store);
    succeed(&mut command)
}

/// Runs a program that should succeed.
pub fn succeed(command: &mut Command) -> Result<(), BenchError> {
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
