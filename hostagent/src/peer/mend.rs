//! Making a store whole again with what peers have.

use super::error::PeerError;
use super::{Cancel, Client};
use crate::image::progress::Progress;
use crate::image::reference::StoredReference;
use crate::store::{Lease, Report, Store, StoredImage};

/// What came of mending the images that a verification found broken.
#[derive(Debug, Default)]
pub struct Mended {
    /// Those that can be used again.
    pub images: Vec<StoredImage>,
    /// Those that cannot, and why.
    pub failed: Vec<(StoredImage, PeerError)>,
}

/// Fetches from peers what the broken images of a report lack: blobs that are missing or
/// were quarantined, and the image again where not even its records are left. An image that
/// is whole then moves from the report to what is returned; others stay in it.
pub fn mend(
    client: &Client,
    store: &Store,
    report: &mut Report,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Mended, PeerError> {
    let lease = store.lease()?;
    let mut mended = Mended::default();
    for (image, damage) in std::mem::take(&mut report.broken) {
        match whole_again(client, store, &image, &lease, progress, cancel) {
            Ok(()) => mended.images.push(image),
            Err(PeerError::Cancelled) => return Err(PeerError::Cancelled),
            Err(error) => {
                report.broken.push((image.clone(), damage));
                mended.failed.push((image, error));
            }
        }
    }
    Ok(mended)
}

fn whole_again(
    client: &Client,
    store: &Store,
    image: &StoredImage,
    lease: &Lease,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(), PeerError> {
    for diff_id in &image.diff_ids {
        for identity in store.recorded_blobs(*diff_id)?.into_iter().flatten() {
            match store.blob(identity, || format!("blob {}", identity.hash)) {
                Ok(_) => {}
                Err(error) if error.is_damage() => {
                    client.fetch_blob(store, identity, lease, progress)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    // What is there now is used; a merge that is missing is made.
    let is_whole = store.config(image.id).is_ok()
        && store
            .obtain_merged(image.id, &image.diff_ids, lease)
            .is_ok();
    if is_whole {
        return Ok(());
    }
    let wanted = StoredReference::Id(image.id);
    client
        .fetch_image(store, &wanted, lease, progress, cancel)
        .map(drop)
}
