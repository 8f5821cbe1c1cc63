//! Manifests and configurations of images, as they came.

use std::io;

use super::durable::{publish, write_file};
use super::leases::Lease;
use super::records::StoredImage;
use super::{Store, StoreError};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::source::{SourceImage, VerifiedDocument};

impl Store {
    /// The configuration of an image, verified again.
    pub fn config(&self, id: Digest) -> Result<ImageConfig, StoreError> {
        let bytes = self.config_document(id)?;
        ImageConfig::parse(&bytes).map_err(|error| StoreError::Corrupt {
            what: format!("image configuration {}", id.short()),
            expected: id.to_string(),
            found: error.to_string(),
        })
    }

    /// The configuration of an image as it came, verified again.
    pub fn config_document(&self, id: Digest) -> Result<Vec<u8>, StoreError> {
        self.document(id, || format!("image configuration {}", id.short()))
    }

    /// A manifest as it came, verified again.
    pub fn manifest_document(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        self.document(digest, || format!("manifest {}", digest.short()))
    }

    fn document(&self, digest: Digest, what: impl Fn() -> String) -> Result<Vec<u8>, StoreError> {
        let bytes = std::fs::read(self.content(digest)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { what: what() },
            _ => self.io(format!("reading {}", what()), source),
        })?;
        let found = Digest::of(&bytes);
        if found == digest {
            return Ok(bytes);
        }
        Err(StoreError::Corrupt {
            what: what(),
            expected: digest.to_string(),
            found: found.to_string(),
        })
    }

    /// Looks whether an image's configuration can be used; one that is corrupt is
    /// quarantined, and the error.
    pub fn check_config(&self, image: &StoredImage) -> Result<(), StoreError> {
        let read = self.config_document(image.id);
        self.usable(read, image.id)
    }

    /// The same for its manifest, if it came with one.
    pub fn check_manifest(&self, image: &StoredImage) -> Result<(), StoreError> {
        image.manifest.map_or(Ok(()), |digest| {
            let read = self.manifest_document(digest);
            self.usable(read, digest)
        })
    }

    fn usable(&self, read: Result<Vec<u8>, StoreError>, digest: Digest) -> Result<(), StoreError> {
        match read {
            Ok(_) => Ok(()),
            Err(error @ StoreError::Corrupt { .. }) => {
                self.quarantine_document(&digest.hex())?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps those documents of `source` that `image`, which is recorded, consists of, in
    /// the place of what is there of them.
    pub fn keep_documents(
        &self,
        image: &StoredImage,
        source: &SourceImage,
        lease: &Lease,
    ) -> Result<(), StoreError> {
        let digests = [Some(image.id), image.manifest];
        let documents = source.documents();
        let mut of_image = documents.filter(|document| digests.contains(&Some(document.digest)));
        // Nothing is collected meanwhile.
        self.hold(lease, || {
            let kept = of_image.try_for_each(|document| self.keep(document));
            kept.map(|()| ((), Vec::new()))
        })
    }

    /// Keeps a manifest or configuration as it came. Whoever has kept it before may not have
    /// come to bring its name to disk: see [`Store::names_of_content`].
    pub(super) fn keep(&self, document: &VerifiedDocument) -> Result<(), StoreError> {
        let path = self.content(document.digest);
        // A damaged one is replaced.
        if std::fs::read(&path).is_ok_and(|bytes| bytes == document.bytes) {
            return Ok(());
        }
        let staging = self.scratch()?;
        let part = staging.path().join("document");
        write_file(&part, &document.bytes)
            .and_then(|()| publish(&part, &path))
            .map_err(|error| self.io(format!("storing {}", document.digest), error))
    }
}
