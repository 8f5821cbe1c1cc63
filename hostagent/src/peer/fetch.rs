//! Images and blobs from peers, into the store.

use std::io;
use std::sync::Arc;

use super::blob::BlobStream;
use super::error::{AskError, Attempt, PeerError};
use super::layer::{PeerLayer, Trouble};
use super::message::{Answer, ImageAnswer, ImageWanted, Request};
use super::session::{Known, Session};
use super::{Cancel, Client};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::layer::{LayerError, LayerSource};
use crate::image::manifest::Document;
use crate::image::name::ImageName;
use crate::image::progress::Progress;
use crate::image::reference::StoredReference;
use crate::image::source::{SourceImage, VerifiedDocument};
use crate::store::{BlobIdentity, ImportError, Imported, Lease, Store, StoreError};

/// Layers of one image that are fetched at a time.
const PARALLEL_LAYERS: usize = 2;

/// What a peer says an image consists of, as far as that can be told by digests.
struct Described {
    answer: ImageAnswer,
    config_document: VerifiedDocument,
    config: ImageConfig,
    manifest: Option<VerifiedDocument>,
}

impl Client {
    /// Fetches a blob that is not in the store, or not whole, and puts it there; `lease`
    /// holds it. Peers are asked in order; where one fails the next one goes on.
    pub fn fetch_blob(
        &self,
        store: &Store,
        identity: BlobIdentity,
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<(), PeerError> {
        let task = progress.begin(&identity.hash.hex()[..12], identity.bytes);
        let mut stream = BlobStream::new(Arc::clone(&self.session), identity, u64::MAX);
        let incoming = store.incoming(identity)?;
        let written = |error| store_failed(store, error);
        let cancelled = || progress.cancelled();
        let fetched = self.runtime.run(&cancelled, async {
            while let Some((bytes, verified)) = stream.next().await? {
                for (offset, range) in verified.nodes {
                    incoming
                        .write_nodes(offset, &bytes[range])
                        .map_err(written)?;
                }
                let data = &bytes[verified.data];
                incoming
                    .write_data(verified.offset, data)
                    .map_err(written)?;
                task.advance(data.len() as u64);
            }
            Ok::<_, PeerError>(())
        });
        self.tell(progress);
        fetched?;
        Ok(store.take_in(&incoming, lease)?)
    }

    /// Fetches an image and takes it in as one from a registry: layers that are not here
    /// are put together from what a peer has of them, checked against the configuration,
    /// and converted here. `lease` holds what it consists of. By id and by digest any peer
    /// may give it; by a tag alone, those that are believed what names mean.
    pub fn fetch_image(
        &self,
        store: &Store,
        wanted: &StoredReference,
        lease: &Lease,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Imported, PeerError> {
        let fetched = self.fetch_from_first(store, wanted, lease, progress, cancel);
        self.tell(progress);
        fetched
    }

    fn fetch_from_first(
        &self,
        store: &Store,
        wanted: &StoredReference,
        lease: &Lease,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Imported, PeerError> {
        let by_tag = matches!(wanted, StoredReference::Name(name) if name.digest().is_none());
        let peers = self.session.peers().iter();
        let mut attempts: Vec<Attempt> = Vec::new();
        for known in peers.filter(|known| known.peer.names || !by_tag) {
            let described = self.runtime.run(&**cancel, async {
                Ok::<_, PeerError>(describe(&self.session, known, wanted, store).await)
            })?;
            let described = match described {
                Ok(described) => described,
                Err(error) => {
                    attempts.push(self.session.failed(known, error));
                    continue;
                }
            };
            let trouble = Arc::new(Trouble::default());
            let source = self.source(store, wanted, described, cancel, &trouble);
            let problem = match store.import(&source, &source.names, lease, progress) {
                Ok(imported) => return Ok(imported),
                Err(ImportError::Cancelled) => return Err(PeerError::Cancelled),
                Err(ImportError::Store(error)) => return Err(error.into()),
                Err(error) => match trouble.take() {
                    Some(PeerError::Cancelled) => return Err(PeerError::Cancelled),
                    // Whoever failed has been noted.
                    Some(error) => {
                        let problem = error.to_string();
                        attempts.push(known.attempt(AskError::Incomplete { problem }));
                        continue;
                    }
                    None => blame(source.config_document.digest, error)?,
                },
            };
            attempts.push(self.session.failed(known, problem));
        }
        Err(PeerError::Nobody {
            what: match wanted {
                StoredReference::Id(id) => format!("image {id}"),
                StoredReference::Name(name) => format!("image {name}"),
            },
            attempts,
        })
    }

    fn source(
        &self,
        store: &Store,
        wanted: &StoredReference,
        described: Described,
        cancel: &Cancel,
        trouble: &Arc<Trouble>,
    ) -> SourceImage {
        let named = match wanted {
            StoredReference::Name(name) => Some(name),
            StoredReference::Id(_) => None,
        };
        let layers = described.answer.layers.into_iter();
        let layers = layers.map(|layer| LayerSource {
            diff_id: layer.diff_id,
            blob: None,
            content: Arc::new(PeerLayer {
                session: Arc::clone(&self.session),
                runtime: Arc::clone(&self.runtime),
                cancel: Arc::clone(cancel),
                trouble: Arc::clone(trouble),
                max_skeleton_bytes: store.limits().max_tar_bytes,
                layer,
            }),
        });
        SourceImage {
            names: named
                .filter(|name| name.tag().is_some())
                .map(ImageName::without_digest)
                .into_iter()
                .collect(),
            manifest: described.manifest,
            config_document: described.config_document,
            config: described.config,
            layers: layers.collect(),
            parallel: PARALLEL_LAYERS,
            origin: named.filter(|name| name.digest().is_some()).cloned(),
        }
    }

    /// Passes on what peers gave occasion to.
    pub(super) fn tell(&self, progress: &dyn Progress) {
        for note in self.session.take_notes() {
            progress.note(&note);
        }
    }
}

/// What the peer is to be blamed for that says what the image consists of, all bytes being
/// those of the hashes it names; or the image's own error.
fn blame(id: Digest, error: ImportError) -> Result<AskError, PeerError> {
    let own = |error| {
        let source = Box::new(error);
        Err(PeerError::Image { id, source })
    };
    let ImportError::Layer(layer) = &error else {
        return own(error);
    };
    match &**layer {
        LayerError::DiffId { expected, found } => Ok(AskError::wrong(format!(
            "what it names makes layer {found}, not {expected}"
        ))),
        LayerError::Read { diff_id, source } => Ok(AskError::wrong(format!(
            "what it names makes no layer {diff_id}: {source}"
        ))),
        _ => own(error),
    }
}

fn store_failed(store: &Store, error: io::Error) -> PeerError {
    StoreError::io(store.root(), "taking in a blob", error).into()
}

/// Asks a peer what an image consists of. What it says is checked as far as digests go:
/// all but what a name means, and the manifest of an image that is asked for by id.
async fn describe(
    session: &Session,
    known: &Known,
    wanted: &StoredReference,
    store: &Store,
) -> Result<Described, AskError> {
    let request = Request::Image(match wanted {
        StoredReference::Id(id) => ImageWanted::Id(*id),
        StoredReference::Name(name) => ImageWanted::Name(name.to_string()),
    });
    let (answer, mut incoming) = session.ask(known, &request).await?;
    let answer = match answer {
        Answer::Image(answer) => answer,
        Answer::NotHere => return Err(AskError::NotHere),
        Answer::Failed { problem } => return Err(AskError::failed(&problem)),
        Answer::Blob { .. } => return Err(AskError::wrong("a blob instead of an image")),
    };
    answer.check(store.limits())?;
    // Both are bounded now.
    let config = incoming.bytes(answer.config_bytes as usize).await?;
    let manifest = incoming
        .bytes(answer.manifest_bytes.unwrap_or(0) as usize)
        .await?;
    let manifest = answer.manifest_bytes.map(|_| manifest);
    checked(answer, config, manifest, wanted)
}

fn checked(
    answer: ImageAnswer,
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    wanted: &StoredReference,
) -> Result<Described, AskError> {
    let document = |bytes: Vec<u8>| VerifiedDocument {
        digest: Digest::of(&bytes),
        bytes,
    };
    let config_document = document(config);
    let id = config_document.digest;
    if id != answer.id {
        return Err(AskError::wrong(format!(
            "the configuration of image {} is {id}",
            answer.id
        )));
    }
    let manifest = manifest.map(document).filter(|manifest| {
        let parsed = Document::parse(&manifest.bytes);
        matches!(parsed, Ok(Document::Manifest(manifest)) if manifest.config.digest == id)
    });
    let (is_it, manifest) = match wanted {
        // Nothing says which manifest is the one of an id.
        StoredReference::Id(wanted) => (id == *wanted, None),
        StoredReference::Name(name) => match name.digest() {
            None => (true, manifest),
            Some(digest) if digest == id => (true, None),
            Some(digest) => {
                let named = manifest.filter(|manifest| manifest.digest == digest);
                (named.is_some(), named)
            }
        },
    };
    if !is_it {
        return Err(AskError::wrong(format!(
            "image {id} instead of the one asked for"
        )));
    }
    let config = ImageConfig::parse(&config_document.bytes).map_err(|error| AskError::Failed {
        problem: error.to_string(),
    })?;
    let diff_ids = answer.layers.iter().map(|layer| layer.diff_id);
    if !diff_ids.eq(config.diff_ids.iter().copied()) {
        return Err(AskError::wrong("other layers than the configuration has"));
    }
    Ok(Described {
        answer,
        config_document,
        config,
        manifest,
    })
}
