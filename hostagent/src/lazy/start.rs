//! From a name to a disk whose blobs are fetched as they are needed.

use std::sync::Arc;

use serde::Deserialize;

use super::accesses;
use super::artifact::{
    ARTIFACT_TYPE, Access, CONFIG_TYPE, Converted, MAX_CONFIG_BYTES, StoredBlob,
};
use super::fetch::{FetchError, Source, StartUp};
use super::serve::{Extents, Origin, Server};
use super::upstream::{Clients, Upstream};
use crate::disk;
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, MAX_DOCUMENT_BYTES};
use crate::image::name::ImageName;
use crate::image::source::SourceImage;
use crate::registry::{Cancel, Client, Reference, RegistryError, Repository};
use crate::store::{LazyImage, PartialBlob, Store, StoreError, StoredImage};
use crate::vm_process::{BlobTree, Disk, Extent};

/// Artifacts of one image that are looked at.
const MAX_CANDIDATES: usize = 4;
/// Hash trees that are fetched at a time.
const TREES_AT_A_TIME: usize = 4;

/// An image that can be started now, and by whom its blobs are fetched meanwhile.
pub struct Started {
    /// Its disk.
    pub disk: Disk,
    /// Answers its VMM; none if all is there already.
    pub server: Option<Running>,
}

/// The fetching beside a microVM. When it is dropped, what was read is kept for the next
/// start.
pub struct Running {
    server: Server,
    store: Arc<Store>,
    image: Digest,
    /// Which of the disk's blobs each source is.
    blobs: Vec<u32>,
    /// What was known to be read.
    earlier: Vec<Access>,
}

/// What `mote push` has stored beside an image, if it has, and `accept` does not say why it
/// must not be used.
pub fn find(
    client: &Client,
    source: &SourceImage,
    accept: &dyn Fn(Digest) -> Result<(), String>,
    cancel: &Cancel,
    note: &dyn Fn(&str),
) -> Result<Option<LazyImage>, RegistryError> {
    let (Some(origin), Some(manifest)) = (&source.origin, &source.manifest) else {
        return Ok(None);
    };
    let repository = Repository::of(origin);
    let found = client.referrers(&repository, manifest.digest, Some(ARTIFACT_TYPE), &**cancel)?;
    let ours =
        |descriptor: &&Descriptor| descriptor.artifact_type.as_deref() == Some(ARTIFACT_TYPE);
    // What was pushed last is at the end, where the registry keeps the order.
    for descriptor in found.iter().rev().filter(ours).take(MAX_CANDIDATES) {
        let accepted = accept(descriptor.digest).map_err(Unusable::Refused);
        let found = accepted
            .and_then(|()| converted(client, &repository, descriptor.digest, source, cancel));
        match found {
            Ok(converted) => {
                return Ok(Some(LazyImage {
                    repository: origin.repository().to_owned(),
                    converted,
                }));
            }
            Err(Unusable::Registry(RegistryError::Cancelled)) => {
                return Err(RegistryError::Cancelled);
            }
            Err(unusable) => note(&format!(
                "the converted image {} is not used: {unusable}",
                descriptor.digest
            )),
        }
    }
    Ok(None)
}

/// Why what stands beside an image is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{0}")]
    Refused(String),
    #[error("its manifest is not that of a converted image")]
    Manifest,
    #[error(transparent)]
    Artifact(#[from] super::artifact::ArtifactError),
}

fn converted(
    client: &Client,
    repository: &Repository,
    digest: Digest,
    source: &SourceImage,
    cancel: &Cancel,
) -> Result<Converted, Unusable> {
    #[derive(Deserialize)]
    struct Manifest {
        config: Descriptor,
        subject: Option<Descriptor>,
    }
    let reference = Reference::Digest(digest);
    let fetched = client.manifest(repository, &reference, MAX_DOCUMENT_BYTES, &**cancel)?;
    let manifest: Manifest =
        serde_json::from_slice(&fetched.bytes).map_err(|_| Unusable::Manifest)?;
    let subject = manifest.subject.map(|subject| subject.digest);
    let wanted = source.manifest.as_ref().map(|manifest| manifest.digest);
    if manifest.config.media_type != CONFIG_TYPE || subject != wanted {
        return Err(Unusable::Manifest);
    }
    let config = client.blob(repository, &manifest.config, MAX_CONFIG_BYTES, &**cancel)?;
    let image = source.config_document.digest;
    Ok(Converted::parse(&config, image, &source.config.diff_ids)?)
}

/// The disk of an image, some of whose blobs may not be here. `tell` hears what cannot be
/// fetched while it runs.
pub fn start(
    store: &Arc<Store>,
    clients: &Clients,
    image: &StoredImage,
    lazy: &LazyImage,
    cancel: &Cancel,
    tell: Box<dyn Fn(&FetchError) + Send + Sync>,
) -> Result<Started, FetchError> {
    let name: ImageName = match lazy.repository.parse() {
        Ok(name) => name,
        Err(_) => return Err(RegistryError::NoHost(lazy.repository.clone()).into()),
    };
    let repository = Repository::of(&name);
    let converted = &lazy.converted;
    let blobs: Vec<&StoredBlob> = converted.blobs().collect();
    store.admits(blobs.iter().map(|blob| blob.bytes))?;
    let upstream = Upstream {
        store,
        clients,
        repository: &repository,
    };
    let partials = open_all(upstream, &blobs, cancel)?;
    let failed = |source| StoreError::Io {
        root: store.root().to_owned(),
        action: "opening part of a blob".to_owned(),
        source,
    };
    let mut sources = Vec::new();
    let mut indices = Vec::new();
    let mut extents = Vec::new();
    let mut places = Vec::new();
    let disk_blobs = converted.disk().count();
    for ((stored, partial), index) in blobs.iter().zip(partials).zip(0..) {
        let on_disk = index < disk_blobs;
        let Some(partial) = partial else {
            if on_disk {
                let blob = store.blob(stored.identity(), || format!("blob {}", stored.hash))?;
                extents.push(disk::extent(blob));
                places.push(None);
            }
            continue;
        };
        let partial = Arc::new(partial);
        if on_disk {
            let (data, outboard) = partial.files().map_err(failed)?;
            extents.push(Extent {
                file: Arc::new(data.into()),
                offset_bytes: 0,
                length_bytes: stored.bytes,
                blob: Some(BlobTree {
                    hash: stored.hash,
                    outboard: Arc::new(outboard.into()),
                    blocks: None,
                    partial: true,
                }),
            });
            places.push(Some((sources.len(), partial.groups())));
        }
        sources.push(Source {
            partial,
            digest: stored.digest,
        });
        indices.push(index as u32);
    }
    let mut disk = disk::of_extents(image, extents);
    if sources.is_empty() {
        return Ok(Started { disk, server: None });
    }
    let disk_is_whole = places.iter().all(Option::is_none);
    let mut accesses = store.accesses(image.id);
    if accesses.is_empty() {
        accesses.clone_from(&converted.accesses);
    }
    let of_source = |access: Access| {
        let source = indices.iter().position(|index| *index == access.blob)?;
        Some(Access {
            blob: source as u32,
            ..access
        })
    };
    let origin = Origin {
        store: Arc::clone(store),
        clients: clients.clone(),
        repository,
        sources,
        first: accesses.iter().copied().filter_map(of_source).collect(),
    };
    let (server, socket) = Server::start(origin, Extents(places), tell).map_err(failed)?;
    // What is missing besides has nobody who asks.
    disk.source = (!disk_is_whole).then_some(socket);
    let server = Running {
        server,
        store: Arc::clone(store),
        image: image.id,
        blobs: indices,
        earlier: accesses,
    };
    Ok(Started {
        disk,
        server: Some(server),
    })
}

/// The partial ones of these blobs, opened; their hash trees are fetched where that has not
/// been done.
fn open_all(
    upstream: Upstream<'_>,
    blobs: &[&StoredBlob],
    cancel: &Cancel,
) -> Result<Vec<Option<PartialBlob>>, FetchError> {
    let open = |stored| open_partial(upstream, stored, cancel);
    let mut opened = Vec::with_capacity(blobs.len());
    for some in blobs.chunks(TREES_AT_A_TIME) {
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let opening = some.iter().map(|stored| scope.spawn(|| open(stored)));
            let opening: Vec<_> = opening.collect();
            let joined = opening.into_iter().map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        });
        for outcome in outcomes {
            opened.push(outcome?);
        }
    }
    Ok(opened)
}

/// A blob, to be filled; none if it is here. Its hash tree is fetched if that has not been
/// done.
pub(super) fn open_partial(
    upstream: Upstream<'_>,
    stored: &StoredBlob,
    cancel: &Cancel,
) -> Result<Option<PartialBlob>, FetchError> {
    let store = upstream.store;
    let identity = stored.identity();
    match store.blob(identity, String::new) {
        Ok(_) => return Ok(None),
        Err(StoreError::Missing { .. }) => {}
        // What is here is damaged, and what is fetched takes its place, or the registry
        // is wrong: its word takes nothing out of use.
        Err(StoreError::Corrupt { .. }) => {
            if let Some(found) = store.blob_identity(identity.hash)
                && !store.quarantine_if_corrupt(found)?
            {
                // Somebody else has just put it there.
                if store.blob(identity, String::new).is_ok() {
                    return Ok(None);
                }
                return Err(FetchError::Length {
                    repository: upstream.repository.to_string(),
                    hash: identity.hash,
                    said: identity.bytes,
                    found: found.bytes,
                });
            }
        }
        Err(error) => return Err(error.into()),
    }
    let partial = store.partial(identity, |file| match stored.outboard_descriptor() {
        Some(tree) => upstream.tree(&tree, file, cancel),
        None => Ok(()),
    })?;
    // Filled by an earlier start that did not come to say so.
    match store.save_partial(&partial)? {
        true => Ok(None),
        false => Ok(Some(partial)),
    }
}

impl Running {
    /// The blobs that are filled.
    pub fn partials(&self) -> Vec<Arc<PartialBlob>> {
        self.server.partials()
    }

    /// What may be told of the workload, until which the rest is not fetched.
    pub fn start_up(&self) -> StartUp {
        self.server.start_up()
    }

    /// How many bytes have come since the start.
    pub fn fetched_bytes(&self) -> Arc<std::sync::atomic::AtomicU64> {
        self.server.fetched_bytes()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let read = self.server.accesses();
        let of_disk = |access: Access| {
            let blob = *self.blobs.get(access.blob as usize)?;
            Some(Access { blob, ..access })
        };
        let accesses: Vec<Access> = read.into_iter().filter_map(of_disk).collect();
        if !accesses.is_empty() {
            let merged = accesses::merged(&self.earlier, &accesses);
            // They only save time.
            let _ = self.store.keep_accesses(self.image, &merged);
        }
    }
}
