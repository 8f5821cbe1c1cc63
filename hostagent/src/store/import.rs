//! Taking an image in: from its source to everything a microVM needs of it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::durable::{publish, sync_directory, write_file};
use super::layers::{ConvertError, Obtained};
use super::leases::Lease;
use super::records::{StoredImage, now_unix_seconds};
use super::{Store, StoreError};
use crate::image::digest::Digest;
use crate::image::layer::LayerError;
use crate::image::name::ImageName;
use crate::image::progress::Progress;
use crate::image::source::{SourceImage, VerifiedDocument};

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

/// Why an image was not taken in. Nothing of it is recorded; layers that were
/// converted before the failure stay, whole and verified, and are used next time.
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

impl Store {
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
        loop {
            self.import_layers(source, &mut converted, lease, progress)?;
            match self.obtain_merged(id, diff_ids, lease) {
                Ok(()) => break,
                // A layer that was there is corrupt. It is quarantined: once more, then.
                Err(error) if error.is_damage() && converted.len() < diff_ids.len() => {
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
        self.sync_names()?;
        // Nothing collects the documents before the image is recorded that needs them.
        self.hold(lease, || {
            self.keep(&source.config_document)?;
            if let Some(manifest) = &source.manifest {
                self.keep(manifest)?;
            }
            self.record(&image)?;
            Ok::<_, StoreError>(((), Vec::new()))
        })?;
        Ok(Imported {
            image,
            converted: converted.len(),
            reused: distinct.len() - converted.len(),
        })
    }

    /// Converts the layers that are not there yet, several at a time, and takes note of
    /// which these are. The first error ends it, as soon as what has begun has ended.
    fn import_layers(
        &self,
        source: &SourceImage,
        converted: &mut BTreeSet<Digest>,
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<(), ImportError> {
        let count = source.layers.len();
        let mut seen = BTreeSet::new();
        let layers = source.layers.iter().zip(1..);
        let layers: Vec<_> = layers
            .filter(|(layer, _)| seen.insert(layer.diff_id))
            .collect();
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let work = || -> Result<Vec<Digest>, ImportError> {
            let mut converted = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let Some((layer, number)) = layers.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                let name = match layer.blob {
                    Some(digest) => digest.short(),
                    None => format!("layer {number} of {count}"),
                };
                match self.obtain_layer(layer, &name, lease, progress) {
                    Ok(Obtained::Converted) => converted.push(layer.diff_id),
                    Ok(Obtained::WasThere) => {}
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(converted)
        };
        let threads = source.parallel.clamp(1, layers.len().max(1));
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = workers.into_iter().map(|worker| match worker.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            std::iter::once(own).chain(others).collect()
        });
        for outcome in outcomes {
            match outcome {
                Ok(digests) => converted.extend(digests),
                Err(ImportError::Layer(error)) if matches!(*error, LayerError::Cancelled) => {
                    return Err(ImportError::Cancelled);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Brings to disk the names of all that an image is made of. What was there already may
    /// have been put there by a process that was killed before it came to that.
    fn sync_names(&self) -> Result<(), StoreError> {
        [self.blobs(), self.layers(), self.disks()]
            .iter()
            .try_for_each(|directory| sync_directory(directory))
            .map_err(|error| self.io("bringing the image to disk", error))
    }

    /// Keeps a manifest or configuration as it came.
    pub(super) fn keep(&self, document: &VerifiedDocument) -> Result<(), StoreError> {
        let path = self.content(document.digest);
        // A damaged one is replaced; of one that is there the name may not be on disk yet.
        if std::fs::read(&path).is_ok_and(|bytes| bytes == document.bytes) {
            return sync_directory(&self.contents())
                .map_err(|error| self.io(format!("storing {}", document.digest), error));
        }
        let staging = self.scratch()?;
        let part = staging.path().join("document");
        write_file(&part, &document.bytes)
            .and_then(|()| publish(&part, &path))
            .map_err(|error| self.io(format!("storing {}", document.digest), error))
    }
}
