//! Images as others read them: one archive that is an OCI image layout and a docker
//! archive too, as Docker has written it since version 25, or a layout in a directory.
//!
//! Layers are not compressed, so each is named by its `diff_id`, and what reads the
//! archive finds the layers and the configuration that the image was made from, byte for
//! byte. Its manifest is a new one, since the names of the layers are in it.
//!
//! Source: OCI image specification 1.1, "Image Layout"; Moby, "image/tarexport".

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use outboard::BlobHash;
use serde_json::{Value, json};

use super::digest::Digest;
use super::name::ImageName;
use super::progress::{Progress, Task};
use crate::store::{Store, StoreError, StoredImage, is_out_of_space};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image and the names to save it by.
#[derive(Debug, Clone)]
pub struct Saved {
    /// The image.
    pub image: StoredImage,
    /// Its names, as they were asked for.
    pub names: Vec<ImageName>,
}

/// Why an image was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The store failed, or has not all of it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer could not be put together again.
    #[error("cannot save layer {diff_id}")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// Why.
        source: io::Error,
    },
    /// A layer is not what was stored.
    #[error(
        "cannot save layer {diff_id}: its blob {hash} is quarantined; load the image again with `mote load`, or pull it with `mote pull`"
    )]
    Corrupt {
        /// The layer.
        diff_id: Digest,
        /// What is corrupt of it.
        hash: BlobHash,
        /// What is wrong with that.
        source: io::Error,
    },
    /// What was saved could not be written.
    #[error("cannot write {place}")]
    Write {
        /// The file or directory.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
}

/// Where files of a layout go.
pub trait Target {
    /// What to call it in errors.
    fn place(&self) -> String;

    /// Adds a file of `bytes` bytes, which `content` has.
    fn add(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> io::Result<()>;
}

/// A tar archive.
pub struct ArchiveTarget<W: Write> {
    place: String,
    tar: tar::Builder<BufWriter<W>>,
}

impl<W: Write> ArchiveTarget<W> {
    /// Will write to `out`, which is called `place` in errors.
    pub fn new(out: W, place: String) -> Self {
        let out = BufWriter::with_capacity(1 << 20, out);
        Self {
            place,
            tar: tar::Builder::new(out),
        }
    }

    /// Ends the archive; returns what it was written to, once `sync` has brought that where
    /// it is to stay.
    pub fn finish(self, sync: impl FnOnce(&mut W) -> io::Result<()>) -> Result<W, SaveError> {
        let ended = || {
            let out = self.tar.into_inner()?;
            let mut out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            sync(&mut out).map(|()| out)
        };
        ended().map_err(|source| SaveError::Write {
            place: self.place,
            source,
        })
    }
}

impl<W: Write> Target for ArchiveTarget<W> {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn add(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes);
        header.set_mode(0o644);
        // The same archive whenever it is written.
        header.set_mtime(0);
        let mut exact = Exact {
            content,
            left: bytes,
        };
        self.tar.append_data(&mut header, name, &mut exact)
    }
}

/// A directory. What was in it stays as it was until all is written.
pub struct DirectoryTarget {
    directory: PathBuf,
    /// Where what is written is, and its place.
    parts: Vec<(PathBuf, PathBuf)>,
    /// The directories that were not there, from the outermost on.
    made: Vec<PathBuf>,
}

impl DirectoryTarget {
    /// Makes it, if it is not there.
    pub fn create(directory: &Path) -> Result<Self, SaveError> {
        let mut target = Self {
            directory: directory.to_owned(),
            parts: Vec::new(),
            made: Vec::new(),
        };
        let blobs = directory.join("blobs/sha256");
        let missing = blobs
            .ancestors()
            .take_while(|path| *path != Path::new("") && !path.is_dir());
        let missing: Vec<&Path> = missing.collect();
        for path in missing.into_iter().rev() {
            match std::fs::create_dir(path) {
                Ok(()) => target.made.push(path.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
                Err(source) => return Err(target.failed(source)),
            }
        }
        Ok(target)
    }

    /// Puts everything in its place, and brings it to disk: the blobs first, since what is
    /// in the directory itself names them.
    pub fn finish(mut self) -> Result<(), SaveError> {
        let blobs = self.directory.join("blobs/sha256");
        let placed = [&blobs, &self.directory]
            .into_iter()
            .try_for_each(|within| {
                let parts = self.parts.iter();
                let mut parts = parts.filter(|(_, place)| place.parent() == Some(within));
                parts.try_for_each(|(part, place)| std::fs::rename(part, place))?;
                File::open(within)?.sync_all()
            });
        placed
            .and_then(|()| self.sync_names())
            .map_err(|source| self.failed(source))?;
        self.made.clear();
        Ok(())
    }

    /// Brings to disk what the directories are called, whoever made them.
    fn sync_names(&self) -> io::Result<()> {
        let blobs = self.directory.join("blobs/sha256");
        let paths: BTreeSet<_> = self.made.iter().chain([&blobs, &self.directory]).collect();
        for path in paths {
            let parent = path.parent().filter(|parent| *parent != Path::new(""));
            match File::open(parent.unwrap_or(Path::new("."))) {
                // One that may be written and not read.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                opened => opened?.sync_all()?,
            }
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> SaveError {
        SaveError::Write {
            place: self.place(),
            source,
        }
    }
}

impl Drop for DirectoryTarget {
    fn drop(&mut self) {
        // Those that are not in their places; what cannot be removed does no harm.
        for (part, _) in &self.parts {
            let _ = std::fs::remove_file(part);
        }
        // If there is nothing in them.
        for directory in self.made.iter().rev() {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

impl Target for DirectoryTarget {
    fn place(&self) -> String {
        self.directory.display().to_string()
    }

    fn add(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> io::Result<()> {
        let (process, number) = (std::process::id(), self.parts.len());
        let part = self.directory.join(format!(".{process}-part-{number}"));
        let place = self.directory.join(name);
        self.parts.push((part.clone(), place));
        let mut file = File::create(&part)?;
        let mut exact = Exact {
            content,
            left: bytes,
        };
        io::copy(&mut exact, &mut file)?;
        file.sync_data()
    }
}

/// As many bytes as were announced, or an error.
struct Exact<'c> {
    content: &'c mut dyn Read,
    left: u64,
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.content.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Writes images as one layout.
pub fn save(
    store: &Store,
    images: &[Saved],
    target: &mut dyn Target,
    progress: &dyn Progress,
) -> Result<(), SaveError> {
    let mut index = Vec::new();
    let mut docker = Vec::new();
    let mut layers_saved = BTreeSet::new();
    for saved in images {
        let image = &saved.image;
        let merged = store.merged(&image.diff_ids)?;
        let count = merged.layers.len();
        for (layer, number) in merged.layers.iter().zip(1..) {
            if !layers_saved.insert(layer.diff_id) {
                continue;
            }
            let task = progress.begin(&format!("layer {number} of {count}"), layer.tar_bytes);
            let name = blob_name(layer.diff_id);
            let added = layer.tar(|tar| {
                let mut tar = Watched { tar, task: &*task };
                target.add(&name, layer.tar_bytes, &mut tar)
            });
            added.map_err(|source| match progress.cancelled() {
                true => SaveError::Cancelled,
                // Reading takes no space.
                false if is_out_of_space(&source) => SaveError::Write {
                    place: target.place(),
                    source,
                },
                false => of_layer(store, layer.diff_id, source),
            })?;
        }
        let config = store.config_document(image.id)?;
        add(target, &blob_name(image.id), &config)?;
        let layers: Vec<Value> = merged
            .layers
            .iter()
            .map(|layer| descriptor(OCI_LAYER, layer.diff_id, layer.tar_bytes))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, image.id, config.len() as u64),
            "layers": layers,
        })
        .to_string();
        let digest = Digest::of(manifest.as_bytes());
        add(target, &blob_name(digest), manifest.as_bytes())?;
        let entry = descriptor(OCI_MANIFEST, digest, manifest.len() as u64);
        index.extend(entries(entry, &saved.names));
        docker.push(json!({
            "Config": blob_name(image.id),
            "RepoTags": saved.names.iter().map(ImageName::to_string).collect::<Vec<_>>(),
            "Layers": image.diff_ids.iter().map(|id| blob_name(*id)).collect::<Vec<_>>(),
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index});
    add(
        target,
        "manifest.json",
        Value::from(docker).to_string().as_bytes(),
    )?;
    add(target, "index.json", index.to_string().as_bytes())?;
    add(target, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Why a layer could not be put together again. A blob of it that is corrupt is quarantined:
/// who loads or pulls the image again would find it there otherwise.
fn of_layer(store: &Store, diff_id: Digest, source: io::Error) -> SaveError {
    match store.quarantine_cause(&source) {
        Ok(Some(hash)) => SaveError::Corrupt {
            diff_id,
            hash,
            source,
        },
        Ok(None) => SaveError::Layer { diff_id, source },
        Err(error) => error.into(),
    }
}

/// An entry of the index for each name, or one without.
fn entries(entry: Value, names: &[ImageName]) -> Vec<Value> {
    let named = names.iter().filter_map(|name| {
        let mut entry = entry.clone();
        entry["annotations"] = json!({
            "io.containerd.image.name": name.tagged()?,
            "org.opencontainers.image.ref.name": name.tag()?,
        });
        Some(entry)
    });
    let named: Vec<Value> = named.collect();
    match named.is_empty() {
        true => vec![entry],
        false => named,
    }
}

fn add(target: &mut dyn Target, name: &str, bytes: &[u8]) -> Result<(), SaveError> {
    let length = bytes.len() as u64;
    let added = target.add(name, length, &mut &bytes[..]);
    added.map_err(|source| SaveError::Write {
        place: target.place(),
        source,
    })
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

/// Counts what is read, and fails once the user has had enough.
struct Watched<'t> {
    tar: &'t mut dyn Read,
    task: &'t dyn Task,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.task.cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        let read = self.tar.read(buffer)?;
        self.task.advance(read as u64);
        Ok(read)
    }
}
