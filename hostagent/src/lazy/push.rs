//! Storing a converted image in a registry, beside the image it was made from.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use outboard::BlobHash;
use serde_json::{Value, json};

use super::artifact::{ARTIFACT_TYPE, Access, CONFIG_TYPE, Converted, ConvertedLayer, StoredBlob};
use crate::image::digest::Digest;
use crate::image::hashing::HashingReader;
use crate::image::manifest::{Descriptor, Index, MAX_DOCUMENT_BYTES};
use crate::image::name::ImageName;
use crate::image::progress::Progress;
use crate::registry::{
    Cancel, Client, DOCKER_MANIFEST, OCI_MANIFEST, Pushed, Reference, RegistryError, Repository,
};
use crate::store::{
    Blob, CONVERTER_VERSION, MergedImage, Store, StoreError, StoredImage, StoredLayer, StreamReader,
};

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The store has not all of it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A part of it could not be read.
    #[error("cannot read {what}")]
    Read {
        /// Such as `blob blake3:…`.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A blob of it is not what was stored.
    #[error(
        "its blob {hash} is quarantined; load the image again with `mote load`, or pull it with `mote pull`"
    )]
    Corrupt {
        /// The blob.
        hash: BlobHash,
        /// What was attempted when it was found, and what is wrong with it.
        source: Box<PushError>,
    },
    /// The documents about it could not be written.
    #[error("cannot describe the image")]
    Describe(#[from] serde_json::Error),
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// The manifest of the image in the registry.
    pub manifest: Digest,
    /// The manifest of what it was converted to.
    pub artifact: Digest,
    /// Blobs that had to be uploaded, and their bytes.
    pub uploaded: (usize, u64),
    /// Blobs that were there.
    pub there: usize,
}

/// Pushes `image` under `name`: the image itself, if the registry has it not, and what it
/// was converted to. A blob that turns out to be corrupt is quarantined. What the registry
/// has is asked of itself, never of a mirror.
pub fn push(
    store: &Store,
    image: &StoredImage,
    name: &ImageName,
    client: &Client,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<PushedImage, PushError> {
    let push = Push {
        store,
        client,
        repository: Repository::of(name),
        cancel,
        progress,
        uploaded: (0, 0),
        there: 0,
    };
    push.image(image, name)
        .map_err(|error| match store.quarantine_cause(&error) {
            Ok(Some(hash)) => PushError::Corrupt {
                hash,
                source: Box::new(error),
            },
            Ok(None) => error,
            Err(error) => error.into(),
        })
}

struct Push<'p> {
    store: &'p Store,
    client: &'p Client,
    repository: Repository,
    cancel: &'p Cancel,
    progress: &'p dyn Progress,
    uploaded: (usize, u64),
    there: usize,
}

impl Push<'_> {
    fn image(mut self, image: &StoredImage, name: &ImageName) -> Result<PushedImage, PushError> {
        let merged = self.store.merged(&image.diff_ids)?;
        let subject = self.source(image, name, &merged)?;
        let manifest = subject.digest;
        let converted = self.converted(image, &merged)?;
        let artifact = self.artifact(&converted, &subject)?;
        Ok(PushedImage {
            manifest,
            artifact,
            uploaded: self.uploaded,
            there: self.there,
        })
    }

    /// Sees to it that the registry has the image; returns what describes its manifest.
    fn source(
        &mut self,
        image: &StoredImage,
        name: &ImageName,
        merged: &MergedImage,
    ) -> Result<Descriptor, PushError> {
        let tag = Reference::Tag(name.tag().unwrap_or("latest").to_owned());
        if let Some(digest) = image.manifest {
            let bytes = self.store.manifest_document(digest)?;
            let there = self.client.manifest_in_registry(
                &self.repository,
                &Reference::Digest(digest),
                MAX_DOCUMENT_BYTES,
                &**self.cancel,
            );
            match there {
                Ok(fetched) => {
                    let media_type = match fetched.media_type.as_str() {
                        DOCKER_MANIFEST => DOCKER_MANIFEST,
                        _ => OCI_MANIFEST,
                    };
                    if name.tag().is_some() && !self.leads_to(&tag, digest)? {
                        self.put(&tag, &bytes, media_type)?;
                    }
                    return Ok(descriptor(media_type, digest, bytes.len() as u64));
                }
                Err(RegistryError::Cancelled) => return Err(PushError::Cancelled),
                // Not there: what follows puts it there, or tells why it cannot.
                Err(_) => {}
            }
        }
        let mut layers = Vec::new();
        for layer in &merged.layers {
            let described = descriptor(OCI_LAYER, layer.diff_id, layer.tar_bytes);
            self.layer(layer, &described)?;
            layers.push(described);
        }
        let config = self.store.config_document(image.id)?;
        let described = descriptor(OCI_CONFIG, image.id, config.len() as u64);
        self.document(&described, &config)?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described,
            "layers": layers,
        }))?;
        let digest = self.put(&tag, &manifest, OCI_MANIFEST)?;
        Ok(descriptor(OCI_MANIFEST, digest, manifest.len() as u64))
    }

    /// Whether a tag is that of a manifest, or of an index with this manifest in it, which
    /// stays.
    fn leads_to(&self, tag: &Reference, digest: Digest) -> Result<bool, PushError> {
        let named = self.client.manifest_in_registry(
            &self.repository,
            tag,
            MAX_DOCUMENT_BYTES,
            &**self.cancel,
        );
        match named {
            Ok(named) if named.digest == digest => Ok(true),
            Ok(named) => Ok(Index::parse(&named.bytes)
                .is_ok_and(|index| index.manifests.iter().any(|entry| entry.digest == digest))),
            Err(RegistryError::Cancelled) => Err(PushError::Cancelled),
            // No such tag: to put it tells what else may be wrong.
            Err(_) => Ok(false),
        }
    }

    /// A layer as the tar stream it was: put together again, by a thread, as it is read.
    fn layer(&mut self, layer: &StoredLayer, descriptor: &Descriptor) -> Result<(), PushError> {
        let diff_id = layer.diff_id;
        let store = self.store;
        let failure = Arc::new(Mutex::new(None));
        let failed = Arc::clone(&failure);
        let open = move || -> io::Result<Box<dyn Read + Send>> {
            let failed = Arc::clone(&failed);
            let layer = store.layer(diff_id).map_err(io::Error::other)?;
            let layer = layer.ok_or(io::ErrorKind::NotFound)?;
            let (read, mut write) = io::pipe()?;
            std::thread::Builder::new()
                .name("tar".to_owned())
                .spawn(move || {
                    // A failure ends the stream before its end, which the reader tells.
                    if let Err(error) = layer.tar(|tar| io::copy(tar, &mut write)) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                })?;
            Ok(Box::new(read))
        };
        self.blob(descriptor, &open).map_err(|error| {
            let why = failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            match (error, why) {
                // The registry had nothing to do with it.
                (PushError::Registry(RegistryError::Content { .. }), Some(source)) => {
                    PushError::Read {
                        what: format!("layer {diff_id}"),
                        source,
                    }
                }
                (error, _) => error,
            }
        })
    }

    /// Pushes the blobs of the image and what describes them.
    fn converted(
        &mut self,
        image: &StoredImage,
        merged: &MergedImage,
    ) -> Result<Converted, PushError> {
        let metadata = self.stored(&merged.metadata)?;
        let mut layers = Vec::new();
        for layer in &merged.layers {
            layers.push(ConvertedLayer {
                diff_id: layer.diff_id,
                tar_bytes: layer.tar_bytes,
                blob: self.stored(&layer.blob)?,
                skeleton: self.stored(&layer.skeleton)?,
            });
        }
        let accesses: Vec<Access> = self.store.accesses(image.id);
        Ok(Converted {
            converter: CONVERTER_VERSION,
            image: image.id,
            metadata,
            layers,
            accesses,
        })
    }

    /// Pushes a blob and its hash tree.
    fn stored(&mut self, blob: &Blob) -> Result<StoredBlob, PushError> {
        let hash = blob.identity.hash;
        let failed = |source| PushError::Read {
            what: format!("blob {hash}"),
            source,
        };
        let digest = HashingReader::new(StreamReader::new(blob))
            .and_then(HashingReader::finish)
            .map_err(failed)?;
        let mut tree = Vec::new();
        (&blob.outboard).read_to_end(&mut tree).map_err(failed)?;
        let stored = StoredBlob {
            hash,
            bytes: blob.identity.bytes,
            digest,
            outboard: (!tree.is_empty()).then(|| Digest::of(&tree)),
        };
        let identity = blob.identity;
        let store = self.store;
        let open = move || -> io::Result<Box<dyn Read + Send>> {
            let blob = store.blob(identity, || format!("blob {hash}"));
            let blob = blob.map_err(io::Error::other)?;
            Ok(Box::new(StreamReader::new(blob)))
        };
        self.blob(&stored.data_descriptor(), &open)?;
        if let Some(descriptor) = stored.outboard_descriptor() {
            self.document(&descriptor, &tree)?;
        }
        Ok(stored)
    }

    fn artifact(
        &mut self,
        converted: &Converted,
        subject: &Descriptor,
    ) -> Result<Digest, PushError> {
        let config = serde_json::to_vec(converted)?;
        let described = descriptor(CONFIG_TYPE, Digest::of(&config), config.len() as u64);
        self.document(&described, &config)?;
        let data = converted.blobs().map(StoredBlob::data_descriptor);
        let trees = converted
            .blobs()
            .filter_map(StoredBlob::outboard_descriptor);
        let mut layers: Vec<Value> = Vec::new();
        for descriptor in data.chain(trees) {
            layers.push(serde_json::to_value(descriptor)?);
        }
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": described,
            "layers": layers,
            "subject": subject,
        }))?;
        let reference = Reference::Digest(Digest::of(&manifest));
        self.put(&reference, &manifest, OCI_MANIFEST)
    }

    fn document(&mut self, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), PushError> {
        let bytes: Arc<[u8]> = bytes.into();
        let open = move || -> io::Result<Box<dyn Read + Send>> {
            Ok(Box::new(io::Cursor::new(Arc::clone(&bytes))))
        };
        self.blob(descriptor, &open)
    }

    fn blob(
        &mut self,
        descriptor: &Descriptor,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send>>,
    ) -> Result<(), PushError> {
        let task = self
            .progress
            .begin(&descriptor.digest.short(), descriptor.size);
        let pushed =
            self.client
                .push_blob(&self.repository, descriptor, None, open, &**self.cancel);
        task.advance(descriptor.size);
        match pushed.map_err(interrupted)? {
            Pushed::Uploaded => {
                self.uploaded.0 += 1;
                self.uploaded.1 += descriptor.size;
            }
            Pushed::AlreadyThere | Pushed::Mounted => self.there += 1,
        }
        Ok(())
    }

    fn put(
        &self,
        reference: &Reference,
        bytes: &[u8],
        media_type: &str,
    ) -> Result<Digest, PushError> {
        let put = self.client.push_manifest(
            &self.repository,
            reference,
            bytes,
            media_type,
            &**self.cancel,
        );
        put.map_err(interrupted)
    }
}

fn interrupted(error: RegistryError) -> PushError {
    match error {
        RegistryError::Cancelled => PushError::Cancelled,
        error => error.into(),
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: None,
        artifact_type: None,
        urls: None,
    }
}
