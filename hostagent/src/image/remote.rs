//! An image in a registry.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use super::layer::LayerContent;
use super::manifest::{Descriptor, MAX_DOCUMENT_BYTES};
use super::name::ImageName;
use super::source::{Blobs, SourceError, SourceImage, VerifiedDocument, image_from};
use crate::registry::{Cancel, Client, Fetched, Provenance, Reference, Repository};

/// What a name leads to in its registry: a manifest, or an index of them.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The name it was found by.
    pub name: ImageName,
    /// The document.
    pub document: VerifiedDocument,
}

/// Asks the registry what `name` leads to. Nothing else is fetched.
pub fn resolve(
    client: &Client,
    name: &ImageName,
    cancel: &Cancel,
) -> Result<Resolved, SourceError> {
    let repository = Repository::of(name);
    let reference = Reference::of(name);
    let fetched = client
        .manifest(&repository, &reference, MAX_DOCUMENT_BYTES, &**cancel)
        .map_err(|source| SourceError::Registry(Box::new(source)))?;
    Ok(Resolved {
        name: name.clone(),
        document: document(fetched),
    })
}

/// Goes on from there to an image for this machine: its manifest and configuration are
/// fetched and verified, its layers not yet.
pub fn image(
    client: &Arc<Client>,
    resolved: &Resolved,
    cancel: &Cancel,
) -> Result<SourceImage, SourceError> {
    let remote = Remote {
        client: Arc::clone(client),
        repository: Repository::of(&resolved.name),
        place: resolved.name.to_string(),
        cancel: Arc::clone(cancel),
    };
    let names = resolved.name.tag().map(|_| resolved.name.without_digest());
    let mut image = image_from(
        &remote,
        resolved.document.clone(),
        names.into_iter().collect(),
    )?;
    image.origin = Some(resolved.name.with_digest(resolved.document.digest));
    Ok(image)
}

fn document(fetched: Fetched) -> VerifiedDocument {
    VerifiedDocument {
        digest: fetched.digest,
        bytes: fetched.bytes,
    }
}

/// A repository, as a place that holds blobs.
struct Remote {
    client: Arc<Client>,
    repository: Repository,
    place: String,
    cancel: Cancel,
}

impl Blobs for Remote {
    fn place(&self) -> &str {
        &self.place
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<VerifiedDocument, SourceError> {
        let reference = Reference::Digest(descriptor.digest);
        self.client
            .manifest(
                &self.repository,
                &reference,
                MAX_DOCUMENT_BYTES,
                &*self.cancel,
            )
            .map(document)
            .map_err(|source| SourceError::Registry(Box::new(source)))
    }

    fn document(
        &self,
        descriptor: &Descriptor,
        _what: &'static str,
    ) -> Result<VerifiedDocument, SourceError> {
        self.client
            .blob(
                &self.repository,
                descriptor,
                MAX_DOCUMENT_BYTES,
                &*self.cancel,
            )
            .map(|bytes| VerifiedDocument {
                digest: descriptor.digest,
                bytes,
            })
            .map_err(|source| SourceError::Registry(Box::new(source)))
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<Arc<dyn LayerContent>, SourceError> {
        Ok(Arc::new(RemoteLayer {
            client: Arc::clone(&self.client),
            repository: self.repository.clone(),
            descriptor: descriptor.clone(),
            cancel: Arc::clone(&self.cancel),
            given_by: Mutex::default(),
        }))
    }

    fn parallel(&self) -> usize {
        self.client.settings().download.parallel_layers
    }
}

/// A layer in a registry.
struct RemoteLayer {
    client: Arc<Client>,
    repository: Repository,
    descriptor: Descriptor,
    cancel: Cancel,
    /// Who has given what was opened last.
    given_by: Mutex<Option<Provenance>>,
}

impl LayerContent for RemoteLayer {
    fn length(&self) -> u64 {
        self.descriptor.size
    }

    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let cancel = Arc::clone(&self.cancel);
        let reader = self
            .client
            .blob_reader(&self.repository, &self.descriptor, cancel);
        let reader = reader.map_err(io::Error::other)?;
        let mut given_by = self.given_by.lock().unwrap_or_else(PoisonError::into_inner);
        *given_by = Some(reader.provenance());
        Ok(Box::new(reader))
    }

    fn reject(&self) -> Option<String> {
        let mut given_by = self.given_by.lock().unwrap_or_else(PoisonError::into_inner);
        let mirrors = given_by.take()?.reject()?;
        Some(format!("mirror {mirrors}"))
    }
}

impl fmt::Debug for RemoteLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteLayer")
            .field("repository", &self.repository)
            .field("digest", &self.descriptor.digest)
            .finish_non_exhaustive()
    }
}
