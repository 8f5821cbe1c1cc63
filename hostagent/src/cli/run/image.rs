//! The image of a run: found in the store, taken in from where it is, pulled, or started
//! before it is all here.

use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use hostagent::disk;
use hostagent::image::name::ImageName;
use hostagent::image::oci_layout::OciLayout;
use hostagent::image::progress::Progress;
use hostagent::image::reference::{ImageReference, StoredReference};
use hostagent::lazy::Clients;
use hostagent::lazy::fetch::FetchError;
use hostagent::lazy::start::{self, Running, Started};
use hostagent::registry::{Client, RegistryError};
use hostagent::store::{ImportError, LazyImage, Lease, Store, StoreError, StoredImage};
use hostagent::trust::Policy;
use hostagent::vm_process::Disk;

use super::super::documents::{self, Needed};
use super::super::progress::TerminalProgress;
use super::super::pull::{Remote, cancel};
use super::super::source::open_archive;
use super::super::whole;
use super::messages::Messages;

/// When to pull an image, as in Docker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullWhen {
    /// Before each run.
    Always,
    /// If it is not here.
    Missing,
    /// Not at all.
    Never,
}

/// What a run needs of its image.
pub struct RunImage {
    /// The image.
    pub image: StoredImage,
    /// Its disk.
    pub disk: Disk,
    /// Fetches what is missing of it, for as long as it lives.
    pub fetching: Option<Running>,
}

/// Finds the image and makes its disk. What that needs stays as long as `lease`.
pub fn obtain(
    store: &Arc<Store>,
    reference: &ImageReference,
    when: PullWhen,
    lease: &Lease,
    progress: &TerminalProgress,
) -> anyhow::Result<RunImage> {
    let source = match reference {
        ImageReference::Stored(StoredReference::Name(name)) if when == PullWhen::Always => {
            return remote(store, name, lease, progress);
        }
        ImageReference::Stored(reference) => {
            return match (store.find(reference), reference) {
                (Err(StoreError::NoSuchImage { .. }), StoredReference::Name(name))
                    if when != PullWhen::Never =>
                {
                    progress.note(&format!("{name} is not here; asking its registry"));
                    remote(store, name, lease, progress)
                }
                (found, _) => stored(store, found?, reference, when, lease, progress),
            };
        }
        ImageReference::OciLayout { directory, tag } => {
            OciLayout::open(directory)?.image(tag.as_deref())?
        }
        ImageReference::DockerArchive { file, name } => {
            open_archive(store, file, progress)?.image(name.as_ref())?
        }
    };
    let id = source.config_document.digest;
    Policy::of_this_machine()?.admits_local(id, &source.names)?;
    // No name: only loading gives names.
    let image = store.import_or_forget(&source, &[], lease, progress)?.image;
    whole_image(store, image, lease)
}

/// An image of the store, which may be here in part. What a repository says it converts to
/// is used for a name of that repository, where the policy would use it now.
fn stored(
    store: &Arc<Store>,
    image: StoredImage,
    reference: &StoredReference,
    when: PullWhen,
    lease: &Lease,
    progress: &TerminalProgress,
) -> anyhow::Result<RunImage> {
    match when {
        PullWhen::Never => store.check_config(&image)?,
        _ => documents::obtain(store, &image, Needed::Config, lease, progress)?,
    }
    let missing = match disk::of_image(store, &image, lease) {
        Ok(disk) => {
            return Ok(RunImage {
                image,
                disk,
                fetching: None,
            });
        }
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error.into()),
    };
    if whole::merge(store, &image, lease)? {
        return whole_image(store, image, lease);
    }
    if when == PullWhen::Never {
        return Err(missing.into());
    }
    // By its id, or by a name it was given here, or if it has been here once, it is what it
    // is: no registry that the name would lead to is asked.
    let mut recorded = store.lazy_images(image.id)?.into_iter();
    let name = match reference {
        StoredReference::Name(name)
            if recorded.any(|lazy| lazy.repository == name.repository()) =>
        {
            name
        }
        _ => {
            whole::obtain(store, &image, Needed::Config, lease, progress)?;
            return whole_image(store, image, lease);
        }
    };
    let policy = Policy::of_this_machine()?;
    let is_free = policy.admits(name)?.is_nothing() && name.digest().is_none();
    if let (true, Some(lazy)) = (is_free, store.lazy_image(image.id, name.repository())?) {
        hold(store, &lazy, lease)?;
        let client = Arc::new(Client::of_this_machine()?);
        return started(store, &client, image, &lazy);
    }
    remote(store, name, lease, progress)
}

fn hold(store: &Store, lazy: &LazyImage, lease: &Lease) -> Result<(), StoreError> {
    let blobs = lazy.converted.blobs().map(|blob| blob.hash).collect();
    store.hold(lease, || Ok(((), blobs)))
}

fn whole_image(store: &Store, image: StoredImage, lease: &Lease) -> anyhow::Result<RunImage> {
    let disk = disk::of_image(store, &image, lease)?;
    Ok(RunImage {
        image,
        disk,
        fetching: None,
    })
}

/// An image of a registry: started before it has arrived if it is there in converted form,
/// else pulled.
fn remote(
    store: &Arc<Store>,
    name: &ImageName,
    lease: &Lease,
    progress: &TerminalProgress,
) -> anyhow::Result<RunImage> {
    let remote = Remote::find(name)?;
    // One that is all here needs nothing.
    let id = remote.source.config_document.digest;
    let is_here = store.merged(&remote.source.config.diff_ids).is_ok() && store.config(id).is_ok();
    if !is_here {
        let note = |text: &str| progress.note(text);
        let accept = |artifact| remote.accepts_converted(artifact);
        match start::find(&remote.client, &remote.source, &accept, &cancel(), &note) {
            Ok(Some(lazy)) => {
                hold(store, &lazy, lease)?;
                let image = store.describe_lazy(&remote.source, &lazy);
                match started(store, &remote.client, image, &lazy) {
                    Ok(run) => {
                        store.record_lazy(&remote.source, &run.image, &lazy, lease)?;
                        return Ok(run);
                    }
                    Err(error) if is_cancelled(&error) => return Err(error),
                    Err(error) => {
                        progress.note(&format!("the converted image is not used: {error:#}"));
                    }
                }
            }
            Ok(None) => {}
            Err(RegistryError::Cancelled) => return Err(ImportError::Cancelled.into()),
            // It can be pulled all the same.
            Err(error) => progress.note(&format!("no converted image is used: {error}")),
        }
    }
    let image = remote.import(store, lease, progress)?.image;
    whole_image(store, image, lease)
}

fn started(
    store: &Arc<Store>,
    client: &Arc<Client>,
    image: StoredImage,
    lazy: &LazyImage,
) -> anyhow::Result<RunImage> {
    let messages = std::sync::Mutex::new(Messages::about("what is fetched of the image"));
    let repository = lazy.repository.clone();
    let tell = move |kind: &FetchError| {
        let mut messages = messages
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let error = anyhow::Error::msg(chain(kind));
        // Who failed is said in it.
        match kind {
            FetchError::Peer(_) => messages.tell(format_args!("fetching {repository}: {error}")),
            _ => messages.tell(format_args!("fetching from {repository}: {error}")),
        }
    };
    let clients = Clients::with_peers_of_this_machine(client, store.root())?;
    let begun = start::start(store, &clients, &image, lazy, &cancel(), Box::new(tell));
    let Started { disk, server } = match begun {
        Err(FetchError::Registry(RegistryError::Cancelled)) => {
            return Err(ImportError::Cancelled.into());
        }
        begun => begun.with_context(|| format!("cannot fetch {}", lazy.repository))?,
    };
    Ok(RunImage {
        image,
        disk,
        fetching: server,
    })
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ImportError::Cancelled))
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
