//! Taking an image in: from its source to everything a microVM needs of it.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use erofs::merge::{Merge, MergeError};

use super::convert::ConvertError;
use super::durable::Unsynced;
use super::layers::ConvertedLayer;
use super::leases::Lease;
use super::merged::{MergeLayers, merge};
use super::records::{StoredImage, now_unix_seconds};
use super::staging::Staging;
use super::{Store, StoreError};
use crate::image::digest::Digest;
use crate::image::layer::LayerError;
use crate::image::name::ImageName;
use crate::image::progress::Progress;
use crate::image::source::SourceImage;
use crate::registry::RegistryError;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image, with the names it was given now.
    pub image: StoredImage,
    /// Layers converted now.
    pub converted: usize,
    /// Layers that were there.
    pub reused: usize,
}

/// Why an image was not taken in. Nothing of it is recorded. Layers that were converted
/// before the failure stay, whole and verified, and are used next time, or are removed by
/// [`Store::collect`]; see [`Store::import_or_forget`].
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A layer is not what it should be.
    #[error(transparent)]
    Layer(Box<LayerError<ConvertError>>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl ImportError {
    /// Whether the disk is full.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Store(StoreError::NoSpace { .. }))
    }

    /// Whether the image is not what it should be, so that trying again would end the same.
    fn is_refusal(&self) -> bool {
        let Self::Layer(error) = self else {
            return match self {
                Self::Store(StoreError::Merge {
                    quarantined: None,
                    source,
                    ..
                }) => is_of_content(source),
                _ => false,
            };
        };
        match &**error {
            LayerError::BlobDigest { .. }
            | LayerError::DiffId { .. }
            | LayerError::Compression { .. } => true,
            LayerError::Read { source, .. } => is_of_content(source),
            LayerError::Consumer { source, .. } => match source {
                ConvertError::Blob(_) => false,
                ConvertError::Limit(_) | ConvertError::Erofs(_) => is_of_content(source),
            },
            LayerError::Cancelled => false,
        }
    }
}

/// Whether content is what an error is about, and neither the system nor a registry that
/// fails or declines.
fn is_of_content(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(error) = error.downcast_ref::<RegistryError>() {
            return error.is_wrong_answer();
        }
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.raw_os_error().is_some()) {
            return false;
        }
        // Its own source is that of the error within.
        current = match io.and_then(io::Error::get_ref) {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    true
}

/// The manifest and the configuration of an image, written aside.
struct Documents {
    /// Where each is, and its place.
    parts: Vec<(PathBuf, PathBuf)>,
    // Removed with what has not got to its place.
    _staging: Staging,
}

impl Documents {
    /// Writes those that are not kept yet; a damaged one is replaced.
    fn write(
        store: &Store,
        source: &SourceImage,
        unsynced: &mut Unsynced,
    ) -> Result<Self, StoreError> {
        let staging = store.scratch()?;
        let mut parts = Vec::new();
        for document in source.documents() {
            let place = store.content(document.digest);
            if std::fs::read(&place).is_ok_and(|bytes| bytes == document.bytes) {
                continue;
            }
            let part = staging.path().join(document.digest.hex());
            unsynced
                .write(&part, &document.bytes)
                .map_err(|error| store.io(format!("storing {}", document.digest), error))?;
            parts.push((part, place));
        }
        Ok(Self {
            parts,
            _staging: staging,
        })
    }

    /// Puts them in their places. They are on disk.
    fn place(&self) -> io::Result<()> {
        let mut parts = self.parts.iter();
        parts.try_for_each(|(part, place)| std::fs::rename(part, place))
    }
}

/// What becomes of the layers of an image.
struct ImportedLayers {
    /// The one that was converted last, when all others were there: it is not in its place
    /// yet.
    last: Option<ConvertedLayer>,
    /// Those that were there before, from the base up.
    merging: Result<Merge, MergeError>,
}

/// What a thread has made.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Store {
    /// Takes an image in ([`Self::import`]); if it is refused, nothing of it is kept but what
    /// other images or processes need. For a source that is the image's own: what another
    /// node gives wrong says nothing against the image.
    pub fn import_or_forget(
        &self,
        source: &SourceImage,
        names: &[ImageName],
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<Imported, ImportError> {
        let imported = self.import(source, names, lease, progress);
        if imported.as_ref().is_err_and(ImportError::is_refusal) {
            // What stays now, the next collection removes.
            let _ = self.forget_layers(&source.config.diff_ids, lease);
        }
        imported
    }

    /// Takes an image in: converts the layers that are not there yet, merges
    /// them, and then records the image under `names`. Its blobs stay as long as `lease`,
    /// whatever becomes of the image meanwhile.
    pub fn import(
        &self,
        source: &SourceImage,
        names: &[ImageName],
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<Imported, ImportError> {
        let id = source.config_document.digest;
        let diff_ids = &source.config.diff_ids;
        let mut converted = BTreeSet::new();
        let mut unsynced = Unsynced::default();
        let documents = Documents::write(self, source, &mut unsynced)?;
        loop {
            let ImportedLayers { last, merging } =
                self.import_layers(source, &mut converted, lease, progress)?;
            // The last layer is brought to disk while the merge is computed.
            let layers = MergeLayers {
                image: id,
                diff_ids,
                merging,
                converted: last.as_ref(),
            };
            let merged = self.merge_unless_merged(layers, lease, &mut unsynced);
            let wrong = match &merged {
                Err(StoreError::Merge { quarantined, .. }) => *quarantined,
                _ => None,
            };
            let mut is_last = false;
            if let Some(layer) = last {
                is_last = wrong.is_some_and(|hash| layer.is_blob(hash));
                // What was read of it is not what was written: nothing of it is kept.
                if !is_last {
                    self.place(layer.made, lease)?;
                }
            }
            match merged {
                Ok(Some(made)) => break self.place(made, lease)?,
                Ok(None) => break,
                // A layer that was there is corrupt. It is quarantined: once more, then.
                Err(error) if error.is_damage() && !is_last && converted.len() < diff_ids.len() => {
                    progress.note(&format!("converting a layer again: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let merged = self.merged(diff_ids)?;
        let blobs = merged.layers.iter().map(|layer| &layer.blob);
        let distinct: BTreeSet<_> = diff_ids.iter().collect();
        let image = StoredImage {
            id,
            manifest: source.manifest.as_ref().map(|manifest| manifest.digest),
            names: names.to_vec(),
            diff_ids: diff_ids.clone(),
            bytes: blobs
                .chain([&merged.metadata])
                .fold(0, |sum, blob| sum.saturating_add(blob.identity.bytes)),
            created: source.config.created.clone(),
            loaded_unix_seconds: now_unix_seconds(),
            sources: source.origin.iter().cloned().collect(),
        };
        let failed = |error| self.io(format!("storing image {}", id.short()), error);
        unsynced.sync().map_err(failed)?;
        // Nothing collects the documents before the image is recorded that needs them.
        self.hold(lease, || {
            documents.place().map_err(failed)?;
            // What was there before may have been collected meanwhile.
            for document in source.documents() {
                self.keep(document)?;
            }
            // Of all that it needs, who has made it may not have come to that.
            let names = self.names_of_content().map_err(failed)?;
            self.record(&image, names)?;
            Ok::<_, StoreError>(((), Vec::new()))
        })?;
        Ok(Imported {
            image,
            converted: converted.len(),
            reused: distinct.len() - converted.len(),
        })
    }

    /// Converts the layers that are not there yet, several at a time, and takes note of
    /// which these are; meanwhile those below them are merged. The first error ends it, as
    /// soon as what has begun has ended.
    fn import_layers(
        &self,
        source: &SourceImage,
        converted: &mut BTreeSet<Digest>,
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<ImportedLayers, ImportError> {
        let count = source.layers.len();
        let mut seen = BTreeSet::new();
        let mut layers = Vec::new();
        for (layer, number) in source.layers.iter().zip(1..) {
            if seen.insert(layer.diff_id) && !self.usable_layer(layer.diff_id, lease)? {
                layers.push((layer, number));
            }
        }
        let merging = Merge::new(&self.limits);
        if layers.is_empty() {
            return Ok(ImportedLayers {
                last: None,
                merging: Ok(merging),
            });
        }
        let all = &source.config.diff_ids;
        let first = |id: &Digest| layers.iter().any(|(layer, _)| layer.diff_id == *id);
        let below = all.iter().position(first).unwrap_or(all.len());
        let below = self.blobs_to_merge(&all[..below], None)?;
        let next = AtomicUsize::new(0);
        let missing = AtomicUsize::new(layers.len());
        let stop = AtomicBool::new(false);
        let work = || -> Result<(Vec<Digest>, Option<ConvertedLayer>), ImportError> {
            let mut converted = Vec::new();
            let mut last = None;
            while !stop.load(Ordering::Relaxed) {
                let Some((layer, number)) = layers.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                let name = match layer.blob {
                    Some(digest) => digest.short(),
                    None => format!("layer {number} of {count}"),
                };
                let outcome =
                    self.obtain_layer(layer, &name, lease, progress)
                        .and_then(|obtained| {
                            let is_last = missing.fetch_sub(1, Ordering::Relaxed) == 1;
                            let Some(layer) = obtained else {
                                return Ok(());
                            };
                            converted.push(layer.diff_id);
                            if is_last {
                                last = Some(layer);
                                return Ok(());
                            }
                            Ok(self.place(layer.made, lease)?)
                        });
                if let Err(error) = outcome {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok((converted, last))
        };
        let threads = source.parallel.clamp(1, layers.len());
        let (outcomes, merging) = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let merging = merge(merging, &below);
            let outcomes: Vec<_> = workers.into_iter().map(joined).collect();
            (outcomes, merging)
        });
        let mut last = None;
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok((digests, layer)) => {
                    converted.extend(digests);
                    last = last.or(layer);
                }
                Err(ImportError::Layer(error)) if matches!(*error, LayerError::Cancelled) => {
                    failure = failure.or(Some(ImportError::Cancelled));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            None => Ok(ImportedLayers { last, merging }),
            Some(error) => {
                // It stays, like the others that were converted before.
                last.map_or(Ok(()), |layer| self.place(layer.made, lease))?;
                Err(error)
            }
        }
    }

    /// The names of all that images need but for those of the images, to be brought to
    /// disk.
    pub(super) fn names_of_content(&self) -> io::Result<Unsynced> {
        let mut names = Unsynced::default();
        // A converter of another version may just have made its directories.
        let above = ["layers", "disks"].map(|name| self.root.join(name));
        let directories = [self.blobs(), self.layers(), self.disks(), self.contents()];
        for directory in directories.iter().chain(&above) {
            names.add_directory(directory)?;
        }
        Ok(names)
    }
}
