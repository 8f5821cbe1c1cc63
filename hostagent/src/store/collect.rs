//! Removing what no image and no living process needs.
//!
//! What is needed is marked from the images, by way of the records of layers and merges,
//! and from the leases. All else is renamed into a staging directory, under the gate, and
//! removed without it: so a crash leaves what the next command removes, and whoever
//! looks something up does not wait for that.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use outboard::BlobHash;

use super::boot::BootRecord;
use super::leases::Lease;
use super::partial::partial_identity;
use super::staging::Staging;
use super::{Store, StoreError};
use crate::image::digest::Digest;

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs.
    pub blobs: usize,
    /// Bytes on disk that were given back, as far as nobody has them open.
    pub bytes: u64,
}

/// What images and processes need.
#[derive(Debug, Default)]
pub(super) struct Needed {
    pub blobs: BTreeSet<BlobHash>,
    /// Names of files.
    layers: BTreeSet<String>,
    disks: BTreeSet<String>,
    content: BTreeSet<String>,
    images: BTreeSet<String>,
    lazy: BTreeSet<String>,
}

impl Store {
    /// Removes what no image and no living process needs.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        let failed = |source| self.io("removing what nobody needs", source);
        let staging = self.in_reserve(|| self.scratch())?;
        let mut collected = Collected::default();
        {
            let _gate = self.gate().map_err(failed)?;
            let leased = self.leased();
            let leased = leased.map_err(|source| self.io("reading the leases", source))?;
            let needed = self.needed(leased)?;
            let mut sweep = Sweep {
                staging: &staging,
                number: 0,
            };
            // Records first: one whose blob is gone is damage, a blob without one is not.
            sweep
                .all_but(&self.layers(), named(&needed.layers), |_| {})
                .and_then(|()| sweep.all_but(&self.disks(), named(&needed.disks), |_| {}))
                .and_then(|()| sweep.all_but(&self.contents(), named(&needed.content), |_| {}))
                .and_then(|()| sweep.all_but(&self.lazy_records(), named(&needed.lazy), |_| {}))
                .and_then(|()| sweep.all_but(&self.access_records(), named(&needed.images), |_| {}))
                .and_then(|()| {
                    let blobs: BTreeSet<String> = needed.blobs.iter().map(BlobHash::hex).collect();
                    let mut collect = |path: &Path| {
                        collected.blobs += 1;
                        collected.bytes += disk_bytes(path);
                    };
                    sweep.all_but(&self.blobs(), named(&blobs), &mut collect)?;
                    // What has come by another way needs not be fetched any more.
                    let is_missing = |name: &str| {
                        partial_identity(name).is_some_and(|identity| {
                            needed.blobs.contains(&identity.hash)
                                && self.blob_identity(identity.hash).is_none()
                        })
                    };
                    sweep.all_but(&self.partials(), is_missing, &mut collect)
                })
                .map_err(failed)?;
        }
        drop(staging);
        Ok(collected)
    }

    /// Removes layers that neither images nor processes need, this one neither.
    pub(super) fn forget_layers(
        &self,
        diff_ids: &[Digest],
        lease: &Lease,
    ) -> Result<(), StoreError> {
        let failed = |source| self.io("removing what was refused", source);
        let staging = self.in_reserve(|| self.scratch())?;
        let _gate = self.gate().map_err(failed)?;
        let (mut records, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for diff_id in diff_ids {
            records.extend(name(&self.layer_record(*diff_id)));
            blobs.extend(self.layer_blobs(*diff_id)?);
        }
        let mut needed = self.needed(self.leased_without(lease, &blobs).map_err(failed)?)?;
        // A layer that stays may share its skeleton with one that goes.
        for (name, of_it) in self.recorded_layers()? {
            if !records.contains(&name) {
                needed.blobs.extend(of_it);
            }
        }
        let unneeded = blobs.difference(&needed.blobs).map(BlobHash::hex);
        let unneeded: BTreeSet<String> = unneeded.collect();
        let mut sweep = Sweep {
            staging: &staging,
            number: 0,
        };
        let keeps_record = |name: &str| needed.layers.contains(name) || !records.contains(name);
        sweep
            .all_but(&self.layers(), keeps_record, |_| {})
            .and_then(|()| sweep.all_but(&self.blobs(), |name| !unneeded.contains(name), |_| {}))
            .map_err(failed)
    }

    /// The names of the layers' records, and the blobs that each names.
    fn recorded_layers(&self) -> Result<Vec<(String, Vec<BlobHash>)>, StoreError> {
        let failed = |source| self.io("reading records", source);
        let mut layers = Vec::new();
        for entry in std::fs::read_dir(self.layers()).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else {
                continue;
            };
            let diff_id = name.strip_suffix(".json").and_then(Digest::from_hex);
            let blobs = diff_id
                .map(|diff_id| self.layer_blobs(diff_id))
                .transpose()?;
            layers.push((name, blobs.unwrap_or_default()));
        }
        Ok(layers)
    }

    /// Removes the blobs that were quarantined.
    pub fn empty_quarantine(&self) -> Result<Collected, StoreError> {
        let failed = |source| self.io("emptying the quarantine", source);
        let staging = self.in_reserve(|| self.scratch())?;
        let mut collected = Collected::default();
        let mut sweep = Sweep {
            staging: &staging,
            number: 0,
        };
        sweep
            .all_but(
                &self.quarantined(),
                |_| false,
                |path| {
                    collected.blobs += 1;
                    collected.bytes += disk_bytes(path);
                },
            )
            .map_err(failed)?;
        drop(staging);
        Ok(collected)
    }

    /// What images and processes need, which have leased these blobs; under the gate. A record that is none names nothing:
    /// what it stood for is made again. One that cannot be read ends it: nothing is removed.
    fn needed(&self, leased: BTreeSet<BlobHash>) -> Result<Needed, StoreError> {
        let mut needed = Needed {
            blobs: leased,
            ..Needed::default()
        };
        let boot = self.boot_record()?;
        needed
            .blobs
            .extend(boot.iter().flat_map(BootRecord::hashes));
        for image in self.images()? {
            needed.content.insert(image.id.hex());
            needed.images.insert(format!("{}.json", image.id.hex()));
            needed
                .content
                .extend(image.manifest.map(|digest| digest.hex()));
            needed.add(self, &image.diff_ids)?;
            for (name, blobs) in self.lazy_blobs(image.id)? {
                needed.lazy.insert(name);
                needed.blobs.extend(blobs);
            }
        }
        // Records of what is leased stay too: who converts a layer records it before the
        // image.
        needed.add_leased(self)?;
        Ok(needed)
    }

    pub(super) fn contents(&self) -> std::path::PathBuf {
        self.root.join("content/sha256")
    }
}

impl Needed {
    fn add(&mut self, store: &Store, diff_ids: &[Digest]) -> Result<(), StoreError> {
        for diff_id in diff_ids {
            self.layers.extend(name(&store.layer_record(*diff_id)));
            self.blobs.extend(store.layer_blobs(*diff_id)?);
        }
        self.disks.extend(name(&store.merge_record(diff_ids)));
        self.blobs.extend(store.merge_blob(diff_ids)?);
        Ok(())
    }

    fn add_leased(&mut self, store: &Store) -> Result<(), StoreError> {
        let failed = |source| store.io("reading records", source);
        for (name, blobs) in store.recorded_layers()? {
            // Layers that differ in what their files hold alone share a skeleton: of a layer
            // that nobody needs one blob may stay.
            if !blobs.is_empty() && blobs.iter().all(|blob| self.blobs.contains(blob)) {
                self.layers.insert(name);
            }
        }
        for entry in std::fs::read_dir(store.disks()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let blob = store.merge_blob_of(&entry.path())?;
            if blob.is_some_and(|blob| self.blobs.contains(&blob)) {
                self.disks.extend(name(&entry.path()));
            }
        }
        Ok(())
    }
}

/// Renames what is to go into a staging directory.
struct Sweep<'s> {
    staging: &'s Staging,
    number: u64,
}

impl Sweep<'_> {
    /// Takes all entries out of `directory` but those that `keep` says; tells `each` of
    /// them where they are now.
    fn all_but(
        &mut self,
        directory: &Path,
        keep: impl Fn(&str) -> bool,
        mut each: impl FnMut(&Path),
    ) -> io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(&keep) {
                continue;
            }
            let place = self.staging.path().join(self.number.to_string());
            self.number += 1;
            match std::fs::rename(entry.path(), &place) {
                Ok(()) => each(&place),
                // Somebody else took it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What the files of a directory take on disk.
pub(super) fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512));
    sizes.sum()
}

fn named(names: &BTreeSet<String>) -> impl Fn(&str) -> bool {
    |name| names.contains(name)
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}
