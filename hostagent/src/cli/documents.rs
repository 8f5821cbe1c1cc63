//! Configurations and manifests of images that are here, and turn out to be damaged.

use anyhow::{anyhow, bail};
use hostagent::image::name::ImageName;
use hostagent::image::progress::Progress;
use hostagent::store::{Lease, Store, StoreError, StoredImage};

use super::progress::TerminalProgress;
use super::pull::Remote;
use super::whole::is_final;

/// Which documents of an image are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// Its configuration.
    Config,
    /// Its manifest, too, if it came with one.
    ConfigAndManifest,
}

impl Needed {
    fn check(self, store: &Store, image: &StoredImage) -> Result<(), StoreError> {
        store.check_config(image)?;
        match self {
            Self::Config => Ok(()),
            Self::ConfigAndManifest => store.check_manifest(image),
        }
    }
}

/// Sees to it that what is needed of an image's documents is here. One that is corrupt is
/// quarantined. It, or one that is missing, is fetched again from where the image was pulled,
/// and nowhere else, if the policy of this machine would have it pulled from there now.
pub fn obtain(
    store: &Store,
    image: &StoredImage,
    needed: Needed,
    lease: &Lease,
    progress: &TerminalProgress,
) -> anyhow::Result<()> {
    let damage = match needed.check(store, image) {
        Ok(()) => return Ok(()),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error.into()),
    };
    let mut failed = None;
    for source in &image.sources {
        progress.note(&format!(
            "a document of image {} is damaged or missing; fetching it again from {source}",
            image.id.short()
        ));
        let fetched = fetch(store, image, source, lease);
        match fetched.and_then(|()| Ok(needed.check(store, image)?)) {
            Ok(()) => return Ok(()),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        // What is wrong and what to do, and why that was not enough.
        Some(error) => Err(error.context(anyhow!(damage))),
        None => Err(damage.into()),
    }
}

fn fetch(
    store: &Store,
    image: &StoredImage,
    source: &ImageName,
    lease: &Lease,
) -> anyhow::Result<()> {
    let remote = Remote::find(source)?;
    if remote.source.config_document.digest != image.id {
        bail!("{source} leads to another image now");
    }
    Ok(store.keep_documents(image, &remote.source, lease)?)
}
