//! Images that are here in part, and are needed whole: they were started before they were
//! here, or something of them was quarantined.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use hostagent::image::name::ImageName;
use hostagent::image::progress::Progress;
use hostagent::lazy::Clients;
use hostagent::lazy::complete::{CompleteError, complete};
use hostagent::registry::Client;
use hostagent::store::{ImportError, LazyImage, Lease, Store, StoreError, StoredImage};
use hostagent::trust::Policy;

use super::documents::{self, Needed};
use super::progress::TerminalProgress;
use super::pull::{cancel, pull};

/// Sees to it that all of an image is here, of its documents what is `needed`, and stays as
/// long as `lease`. One that was started before it was here is completed, from peers or its
/// registry, and converted by this machine; what a registry says its layers convert to is not
/// used for that, only what they are. Else it is pulled again from where it was pulled, and
/// nowhere else.
pub fn obtain(
    store: &Arc<Store>,
    image: &StoredImage,
    needed: Needed,
    lease: &Lease,
    progress: &TerminalProgress,
) -> anyhow::Result<()> {
    documents::obtain(store, image, needed, lease, progress)?;
    let missing = match hold(store, image, lease) {
        Ok(()) => return Ok(()),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error.into()),
    };
    if merge(store, image, lease)? {
        return Ok(());
    }
    let recorded = store.lazy_images(image.id)?;
    if recorded.is_empty() && image.sources.is_empty() {
        return Err(missing.into());
    }
    let id = image.id.short();
    progress.note(&format!("image {id} is here in part; completing it"));
    let mut failed = anyhow!("nothing is known of where the rest of it is");
    for lazy in &recorded {
        match from_converted(store, image, lazy, lease, progress) {
            Ok(()) => return Ok(()),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                let repository = &lazy.repository;
                progress.note(&format!(
                    "what {repository} has of it is not used: {error:#}"
                ));
                failed = error;
            }
        }
    }
    // From where it is, then, as it was before it was converted.
    for source in &image.sources {
        match pull(store, source, lease, progress) {
            Ok(pulled) if pulled.imported.image.id == image.id => return Ok(()),
            Ok(_) => failed = anyhow!("{source} leads to another image now"),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => failed = error,
        }
    }
    // A name that was given here leads to no registry, or to another image.
    let is_source = |name: &&ImageName| {
        let mut sources = image.sources.iter();
        sources.any(|source| source.repository() == name.repository())
    };
    let name = image.names.iter().find(is_source);
    let name = name.or(image.sources.first());
    let name = name.map_or_else(|| "NAME".to_owned(), ImageName::to_string);
    Err(failed.context(format!(
        "image {id} is here in part, and the rest cannot be fetched now; `mote pull {name}` completes it once its registry can be reached"
    )))
}

/// Makes the tree over an image's layers again, if that is all that is damaged of it, and
/// holds on to all of it; returns whether it did.
pub fn merge(store: &Store, image: &StoredImage, lease: &Lease) -> Result<bool, StoreError> {
    match store.obtain_merged(image.id, &image.diff_ids, lease) {
        Ok(()) => hold(store, image, lease).map(|()| true),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error),
    }
}

fn hold(store: &Store, image: &StoredImage, lease: &Lease) -> Result<(), StoreError> {
    store.hold(lease, || {
        let merged = store.merged(&image.diff_ids)?;
        Ok(((), merged.hashes()))
    })
}

fn from_converted(
    store: &Arc<Store>,
    image: &StoredImage,
    lazy: &LazyImage,
    lease: &Lease,
    progress: &TerminalProgress,
) -> anyhow::Result<()> {
    // Of a repository that is refused now nothing is asked. More is not needed: what comes
    // has the digests of an image that was accepted.
    let mut sources = image.sources.iter();
    let source = sources.find(|source| source.repository() == lazy.repository);
    let source = source.context("it is not known which image it is there")?;
    Policy::of_this_machine()?.admits(source)?;
    let registries = Arc::new(Client::of_this_machine()?);
    let clients = Clients::with_peers_of_this_machine(&registries, store.root())?;
    match complete(store, &clients, image, lazy, lease, &cancel(), progress) {
        Ok(_) => Ok(()),
        Err(error) if error.is_cancelled() => Err(ImportError::Cancelled.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether it would be no better from elsewhere: the user asked to stop, or the disk is full.
pub fn is_final(error: &anyhow::Error) -> bool {
    let completing = error.downcast_ref::<CompleteError>();
    let importing = error.downcast_ref::<ImportError>();
    completing.is_some_and(CompleteError::is_out_of_space)
        || importing
            .is_some_and(|error| matches!(error, ImportError::Cancelled) || error.is_out_of_space())
}
