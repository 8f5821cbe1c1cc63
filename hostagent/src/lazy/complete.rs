//! Completing an image that was started before it was here.
//!
//! What is missing of its blobs is fetched. But what a registry says a layer converts to is
//! not believed beyond the start of that image: of each layer only the tar stream is taken,
//! put together of blob and skeleton; it must have the digest that the image's configuration
//! gives the layer, and is converted here like one that was loaded.

use std::fmt;
use std::io::{self, PipeReader, Read};
use std::sync::Arc;
use std::thread::JoinHandle;

use outboard::GROUP_BYTES;

use super::artifact::{ConvertedLayer, StoredBlob};
use super::fetch::FetchError;
use super::start::open_partial;
use super::upstream::{Clients, Upstream};
use crate::image::layer::{LayerContent, LayerSource};
use crate::image::name::ImageName;
use crate::image::progress::Progress;
use crate::image::source::{SourceImage, VerifiedDocument};
use crate::registry::{Cancel, RegistryError, Repository};
use crate::store::{
    ImportError, Imported, LazyImage, Lease, Store, StoreError, StoredImage, StoredLayer,
};

/// Groups that are asked for at once: 1 MiB.
const GROUPS: u64 = 64;
/// Requests after which what has arrived is brought to disk.
const SAVE_AFTER: usize = 32;
/// How often a blob is begun that other processes take away meanwhile.
const ATTEMPTS: usize = 3;

/// Why an image could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// Something could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The layers are not those of the image, or could not be converted.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl CompleteError {
    /// Whether the user asked to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Import(ImportError::Cancelled)
                | Self::Fetch(FetchError::Registry(RegistryError::Cancelled))
        )
    }

    /// Whether the disk is full.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Fetch(error) => matches!(error, FetchError::Store(StoreError::NoSpace { .. })),
            Self::Import(error) => error.is_out_of_space(),
        }
    }
}

/// Fetches what is missing of the layers of `image` from peers or where `lazy` says, and takes the
/// image in as one that was loaded. What it needs stays as long as `lease`. Nothing is
/// asked for if all has arrived.
pub fn complete(
    store: &Arc<Store>,
    clients: &Clients,
    image: &StoredImage,
    lazy: &LazyImage,
    lease: &Lease,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Imported, CompleteError> {
    let name: ImageName = lazy
        .repository
        .parse()
        .map_err(|_| FetchError::Registry(RegistryError::NoHost(lazy.repository.clone())))?;
    let repository = Repository::of(&name);
    let fetch = Fetch {
        upstream: Upstream {
            store,
            clients,
            repository: &repository,
        },
        cancel,
    };
    // The tree over all layers is made here.
    let layers = &lazy.converted.layers;
    let blobs: Vec<&StoredBlob> = layers
        .iter()
        .flat_map(|layer| [&layer.blob, &layer.skeleton])
        .collect();
    let stored = |error: StoreError| CompleteError::Fetch(error.into());
    store
        .admits(blobs.iter().map(|blob| blob.bytes))
        .map_err(stored)?;
    let hashes = blobs.iter().map(|blob| blob.hash).collect();
    store
        .hold(lease, || Ok::<_, StoreError>(((), hashes)))
        .map_err(stored)?;
    for (blob, number) in blobs.iter().zip(1..) {
        let name = format!("part {number} of {}", blobs.len());
        fetch.blob(blob, &name, progress)?;
    }
    let source = source(store, image, layers).map_err(stored)?;
    let imported = store.import(&source, &[], lease, progress);
    if let Err(error) = &imported {
        // It is fetched again, then.
        store.quarantine_cause(error).map_err(stored)?;
    }
    Ok(imported?)
}

struct Fetch<'f> {
    upstream: Upstream<'f>,
    cancel: &'f Cancel,
}

impl Fetch<'_> {
    /// Sees to it that a blob is here.
    fn blob(
        &self,
        blob: &StoredBlob,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<(), FetchError> {
        let store = self.upstream.store;
        let tell = |error: &FetchError| progress.note(&error.to_string());
        for _ in 0..ATTEMPTS {
            let Some(partial) = open_partial(self.upstream, blob, self.cancel)? else {
                return Ok(());
            };
            let task = progress.begin(name, partial.missing() * GROUP_BYTES);
            let mut requests = 0;
            while let Some((first, count)) = partial.next_missing(0..partial.groups(), GROUPS) {
                let groups = first..first + count;
                let (upstream, cancel) = (self.upstream, &**self.cancel);
                match upstream.groups(&partial, blob.digest, groups, &tell, cancel) {
                    Ok(bytes) => task.advance(bytes),
                    Err(error) => {
                        // What has arrived need not be fetched again; why no more came is
                        // what is to be told.
                        let _ = store.save_partial(&partial);
                        return Err(error);
                    }
                }
                requests += 1;
                // Others may have completed it.
                if requests % SAVE_AFTER == 0 && store.save_partial(&partial)? {
                    return Ok(());
                }
            }
            if store.save_partial(&partial)? {
                return Ok(());
            }
        }
        let what = format!("blob {}, which others take away as it arrives,", blob.hash);
        Err(StoreError::Missing { what }.into())
    }
}

/// The image, as it is recorded, with layers that are put together of what is here.
fn source(
    store: &Arc<Store>,
    image: &StoredImage,
    layers: &[ConvertedLayer],
) -> Result<SourceImage, StoreError> {
    let manifest = image.manifest.and_then(|digest| {
        // It is of no use to a run: one that is damaged is as good as none.
        let bytes = store.manifest_document(digest).ok()?;
        Some(VerifiedDocument { digest, bytes })
    });
    let content = |layer: &ConvertedLayer| Assembled {
        store: Arc::clone(store),
        layer: layer.clone(),
    };
    let layers = layers.iter().map(|layer| LayerSource {
        diff_id: layer.diff_id,
        blob: None,
        content: Arc::new(content(layer)),
    });
    Ok(SourceImage {
        names: Vec::new(),
        manifest,
        config_document: VerifiedDocument {
            digest: image.id,
            bytes: store.config_document(image.id)?,
        },
        config: store.config(image.id)?,
        layers: layers.collect(),
        parallel: 2,
        origin: None,
    })
}

/// The tar stream of a layer, from its blob and its skeleton.
#[derive(Debug)]
struct Assembled {
    store: Arc<Store>,
    layer: ConvertedLayer,
}

impl LayerContent for Assembled {
    fn length(&self) -> u64 {
        self.layer.tar_bytes
    }

    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let layer = &self.layer;
        let open = |blob: &StoredBlob| {
            let opened = self
                .store
                .blob(blob.identity(), || format!("blob {}", blob.hash));
            opened.map_err(io::Error::other)
        };
        let layer = StoredLayer {
            diff_id: layer.diff_id,
            tar_bytes: layer.tar_bytes,
            blob: open(&layer.blob)?,
            skeleton: open(&layer.skeleton)?,
        };
        // One byte more shows in the digest.
        let most = layer.tar_bytes.saturating_add(1);
        let max_skeleton_bytes = self.store.limits().max_tar_bytes;
        let (read, mut write) = io::pipe()?;
        let thread = std::thread::Builder::new()
            .name("tar".to_owned())
            .spawn(move || {
                let tar = |tar: &mut dyn Read| io::copy(&mut tar.take(most), &mut write);
                layer.tar_unverified(max_skeleton_bytes, tar).map(drop)
            })?;
        Ok(Box::new(Tar {
            read,
            thread: Some(thread),
            failure: None,
        }))
    }
}

/// What a thread writes, and then why it ended, as often as it is read.
struct Tar {
    read: PipeReader,
    thread: Option<JoinHandle<io::Result<()>>>,
    failure: Option<SharedError>,
}

/// An error that is told more than once.
#[derive(Debug, Clone)]
struct SharedError(Arc<io::Error>);

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its parts could not be read")
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

impl Read for Tar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        let outcome = match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(io::Error::other("the thread that reads them panicked")),
        };
        if let Err(error) = outcome {
            self.failure = Some(SharedError(Arc::new(error)));
        }
        match &self.failure {
            Some(failure) => Err(io::Error::other(failure.clone())),
            None => Ok(0),
        }
    }
}
