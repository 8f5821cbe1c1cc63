//! Reading what is in the store and comparing it with what was written.

use std::fmt;
use std::io;
use std::path::Path;

use outboard::BlobHash;

use super::blob::BlobIdentity;
use super::blobs::{Blob, BlobError};
use super::leases::Lease;
use super::records::StoredImage;
use super::{Store, StoreError};
use crate::image::digest::Digest;
use crate::image::progress::Progress;

/// What was verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs read and found whole.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What a verification of the whole store found.
#[derive(Debug, Default)]
pub struct Report {
    /// What was read and is whole.
    pub verified: Verified,
    /// What was not as it should be, and is out of use now.
    pub wrong: Vec<Wrong>,
    /// Merges that were made again.
    pub merged: usize,
    /// Images that cannot be used until they are loaded or pulled again, and why.
    pub broken: Vec<(StoredImage, StoreError)>,
}

/// Something in the store that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Such as `blob blake3:…`.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
    /// What became of it.
    pub fate: Fate,
}

/// What became of something that was not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is out of use, and kept aside.
    Quarantined,
    /// It is what it should be again.
    Mended,
    /// It does no harm where it is, and stays there.
    LeftAlone,
    /// It is out of use, and with it what only the user can bring back.
    Lost,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::Quarantined => "Quarantined",
            Fate::Mended => "Mended",
            Fate::LeftAlone => "Left alone",
            Fate::Lost => "Lost",
        };
        write!(f, "{fate}: {}: {}", self.what, self.problem)
    }
}

impl Store {
    /// Reads everything in the store. What is not as it should be is quarantined, and
    /// records that name what is not there are removed; merges are made again from layers
    /// that are whole. `None` if the user has asked to stop.
    pub fn verify_all(&self, progress: &dyn Progress) -> Result<Option<Report>, StoreError> {
        let mut report = Report {
            wrong: self.verify_records()?,
            ..Report::default()
        };
        if self.verify_blobs(&mut report, progress)?.is_none() {
            return Ok(None);
        }
        for partial in self.partial_blobs()? {
            let hash = partial.identity().hash;
            if self.mend_partial(&partial)? {
                report.wrong.push(Wrong {
                    what: format!("part of blob {hash}"),
                    problem: "it is not what it should be; it is fetched again when it is needed"
                        .to_owned(),
                    fate: Fate::Mended,
                });
            }
            if progress.cancelled() {
                return Ok(None);
            }
        }
        self.verify_documents(&mut report)?;
        for image in self.images()? {
            let lease = self.lease()?;
            match self.verify_image(&image, &lease) {
                Ok(merged) => report.merged += usize::from(merged),
                Err(error) if error.is_damage() => report.broken.push((image, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(report))
    }

    fn verify_blobs(
        &self,
        report: &mut Report,
        progress: &dyn Progress,
    ) -> Result<Option<()>, StoreError> {
        let failed = |source| self.io("reading the blobs", source);
        let entries = std::fs::read_dir(self.blobs()).map_err(failed)?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let paths = paths.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let total = paths.iter().map(|path| data_bytes(path)).sum();
        let task = progress.begin("verifying", total);
        for path in &paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(hash) = BlobHash::from_hex(&name) else {
                report.wrong.push(Wrong {
                    what: path.display().to_string(),
                    problem: "it is no blob".to_owned(),
                    fate: Fate::LeftAlone,
                });
                continue;
            };
            let bytes = data_bytes(path);
            let what = || format!("blob {hash}");
            let checked = self.blob(BlobIdentity { hash, bytes }, what);
            let checked = checked.map(|blob| {
                blob.read_all(|piece| {
                    task.advance(piece.len() as u64);
                    !progress.cancelled()
                })
            });
            let problem = match checked {
                Ok(Ok(())) => {
                    report.verified.blobs += 1;
                    report.verified.bytes += bytes;
                    None
                }
                Ok(Err(error)) if error.is_corruption() => Some(error.to_string()),
                Ok(Err(error)) => return Err(self.io("reading a blob", io::Error::other(error))),
                Err(error) if error.is_damage() => Some(error.to_string()),
                Err(error) => return Err(error),
            };
            if progress.cancelled() {
                return Ok(None);
            }
            // Gone meanwhile is no damage.
            if let Some(problem) = problem.filter(|_| path.exists()) {
                self.quarantine(hash)?;
                report.wrong.push(Wrong {
                    what: what(),
                    problem,
                    fate: Fate::Quarantined,
                });
            }
        }
        Ok(Some(()))
    }

    /// Manifests and configurations.
    fn verify_documents(&self, report: &mut Report) -> Result<(), StoreError> {
        let directory = self.root.join("content/sha256");
        let failed = |source| self.io("reading the manifests and configurations", source);
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            let found = Digest::of(&bytes);
            if Digest::from_hex(&name) == Some(found) {
                continue;
            }
            self.quarantine_document(&name)?;
            report.wrong.push(Wrong {
                what: format!("document sha256:{name}"),
                problem: format!("its digest is {found}"),
                fate: Fate::Quarantined,
            });
        }
        Ok(())
    }

    /// Looks whether all is there that an image needs, and makes its merge again if that
    /// is what is missing; returns whether it did.
    fn verify_image(&self, image: &StoredImage, lease: &Lease) -> Result<bool, StoreError> {
        let config = self.config(image.id)?;
        if config.diff_ids != image.diff_ids {
            return Err(StoreError::Corrupt {
                what: format!("the record of image {}", image.id.short()),
                expected: format!("the {} layers of its configuration", config.diff_ids.len()),
                found: "others".to_owned(),
            });
        }
        match self.merged(&image.diff_ids) {
            Ok(_) => Ok(false),
            // What is missing is fetched when it is needed.
            Err(StoreError::Missing { .. }) if !self.lazy_images(image.id)?.is_empty() => Ok(false),
            Err(error) if error.is_damage() => self
                .obtain_merged(image.id, &image.diff_ids, lease)
                .map(|()| true),
            Err(error) => Err(error),
        }
    }

    /// Reads all of an image's blobs, their hash trees, and its configuration. The first
    /// that is not what was written is the error; it is quarantined, so that loading the
    /// image again makes it anew.
    pub fn verify(&self, image: &StoredImage) -> Result<Verified, StoreError> {
        self.config(image.id)?;
        let merged = self.merged(&image.diff_ids)?;
        let mut verified = Verified::default();
        self.check(&merged.metadata, &mut verified, || {
            format!("the merged metadata of image {}", image.id.short())
        })?;
        for layer in &merged.layers {
            let what = || format!("layer {}", layer.diff_id);
            self.check(&layer.blob, &mut verified, what)?;
            self.check(&layer.skeleton, &mut verified, what)?;
        }
        Ok(verified)
    }

    fn check(
        &self,
        blob: &Blob,
        verified: &mut Verified,
        what: impl Fn() -> String,
    ) -> Result<(), StoreError> {
        match blob.read_all(|_| true) {
            Ok(()) => {
                verified.blobs += 1;
                verified.bytes += blob.identity.bytes;
                Ok(())
            }
            Err(source) => {
                if source.is_corruption() {
                    self.quarantine_read(blob)?;
                }
                Err(self.unusable(source, what))
            }
        }
    }

    /// What is to be told of a blob that could not be read.
    fn unusable(&self, source: BlobError, what: impl Fn() -> String) -> StoreError {
        match source {
            source if source.is_corruption() => StoreError::Blob {
                what: what(),
                source,
            },
            source => self.io(format!("reading {}", what()), std::io::Error::other(source)),
        }
    }
}

fn data_bytes(blob: &Path) -> u64 {
    let data = blob.join(super::blob::DATA).metadata();
    data.map_or(0, |metadata| metadata.len())
}
