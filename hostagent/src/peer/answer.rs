//! What the node answers: blobs of the store, and what its images consist of.

use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::bucket::{self, Bucket};
use super::encoding::Piece;
use super::key::PublicKey;
use super::message::{
    self, Answer, ImageAnswer, ImageWanted, LayerAnswer, MAX_REQUEST_BYTES, Request,
};
use super::server::Notepad;
use super::transport::{Code, Patience};
use crate::image::name::ImageName;
use crate::image::reference::StoredReference;
use crate::store::{Blob, Lease, Store, StoreError, StoredImage};

/// Bytes that are sent at a time, where how many is limited: small enough that sixteen
/// requests at the lowest limit each get some in a few seconds.
const SEND_BYTES: usize = 16 << 10;
/// The same without a limit: little enough for a slow line to take it before it is given up.
const UNLIMITED_BYTES: usize = 64 << 10;

/// Answers requests.
pub(super) struct Answers {
    store: Store,
    limit: Option<Bucket>,
    patience: Patience,
    notes: Arc<Notepad>,
}

/// A blob that is being sent. It is not collected meanwhile.
struct Held {
    blob: Blob,
    _lease: Lease,
}

/// What an image consists of, and its documents.
struct Described {
    answer: ImageAnswer,
    documents: Vec<u8>,
}

/// Why nothing more is sent.
struct GivenUp(Code);

impl Answers {
    pub fn new(
        store: Store,
        limit: Option<Bucket>,
        patience: Patience,
        notes: Arc<Notepad>,
    ) -> Self {
        Self {
            store,
            limit,
            patience,
            notes,
        }
    }

    /// Reads one request and answers it.
    pub async fn answer(
        self: Arc<Self>,
        peer: PublicKey,
        mut send: SendStream,
        mut receive: RecvStream,
    ) {
        let request = message::receive(&mut receive, MAX_REQUEST_BYTES);
        let outcome = match timeout(self.patience.stall, request).await {
            Ok(Ok(Request::Blob { hash, groups })) => {
                let found = self.on_disk(move |answers| answers.blob(hash)).await;
                self.send_blob(peer, &mut send, groups, found).await
            }
            Ok(Ok(Request::Image(wanted))) => {
                let found = self.on_disk(move |answers| answers.image(&wanted)).await;
                self.send_image(&mut send, found).await
            }
            Ok(Err(_)) => Err(GivenUp(Code::Misbehaved)),
            Err(_) => Err(GivenUp(Code::TooSlow)),
        };
        // Neither can be done twice, and nobody can be told.
        match outcome {
            Ok(()) => drop(send.finish()),
            Err(GivenUp(code)) => drop(send.reset(code.into())),
        }
    }

    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, GivenUp> {
        let answers = Arc::clone(self);
        let done = spawn_blocking(move || work(&answers)).await;
        done.map_err(|_| GivenUp(Code::Unreadable))
    }

    fn blob(&self, hash: outboard::BlobHash) -> Result<Option<Held>, StoreError> {
        let Some(identity) = self.store.blob_identity(hash) else {
            return Ok(None);
        };
        let lease = self.store.lease()?;
        let blob = self.store.hold(&lease, || {
            let blob = self.store.blob(identity, || format!("blob {hash}"))?;
            Ok::<_, StoreError>((blob, vec![hash]))
        });
        match blob {
            Ok(blob) => Ok(Some(Held {
                blob,
                _lease: lease,
            })),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn send_blob(
        self: &Arc<Self>,
        peer: PublicKey,
        send: &mut SendStream,
        [first, end]: [u64; 2],
        found: Result<Result<Option<Held>, StoreError>, GivenUp>,
    ) -> Result<(), GivenUp> {
        let held = match found? {
            Ok(Some(held)) => Arc::new(held),
            Ok(None) => return self.send_message(send, &Answer::NotHere).await,
            Err(error) => return self.send_failure(send, &error).await,
        };
        let identity = held.blob.identity;
        let geometry = outboard::Geometry::of(identity.bytes);
        let answer = Answer::Blob {
            bytes: identity.bytes,
            has: vec![[0, geometry.groups()]],
        };
        self.send_message(send, &answer).await?;
        let mut groups = first..end;
        while let Some(piece) = Piece::first_of(geometry, &groups) {
            groups.start = piece.groups.end;
            let held = Arc::clone(&held);
            let bytes = self.on_disk(move |_| piece.read(&held.blob)).await?;
            let bytes = bytes.map_err(|error| {
                let advice = "`mote store verify` takes it out of use";
                self.notes
                    .note(format!("cannot give peer {peer} a blob: {error}; {advice}"));
                GivenUp(match error.is_corruption() {
                    true => Code::Corrupt,
                    false => Code::Unreadable,
                })
            })?;
            self.send(send, &bytes).await?;
        }
        Ok(())
    }

    /// The image that is meant, if it is here with all its layers.
    fn image(&self, wanted: &ImageWanted) -> Result<Option<Described>, StoreError> {
        let reference = match wanted {
            ImageWanted::Id(id) => StoredReference::Id(*id),
            ImageWanted::Name(name) => match name.parse::<ImageName>() {
                Ok(name) => StoredReference::Name(name),
                Err(_) => return Ok(None),
            },
        };
        let image = match self.store.find(&reference) {
            Ok(image) => image,
            Err(StoreError::NoSuchImage { .. } | StoreError::AmbiguousId { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // What is only the start of an id is no name.
        let is_meant = match &reference {
            StoredReference::Name(name) => name.digest().is_some() || image.names.contains(name),
            StoredReference::Id(_) => true,
        };
        match is_meant {
            true => self.describe(&image).map(Some),
            false => Ok(None),
        }
    }

    fn describe(&self, image: &StoredImage) -> Result<Described, StoreError> {
        let mut documents = self.store.config_document(image.id)?;
        let config_bytes = documents.len() as u64;
        let manifest = image
            .manifest
            .map(|digest| self.store.manifest_document(digest))
            .transpose()?;
        documents.extend_from_slice(manifest.as_deref().unwrap_or_default());
        let mut layers = Vec::new();
        for diff_id in &image.diff_ids {
            let layer = self
                .store
                .layer(*diff_id)?
                .ok_or_else(|| StoreError::Missing {
                    what: format!("layer {diff_id}"),
                })?;
            layers.push(LayerAnswer {
                diff_id: *diff_id,
                tar_bytes: layer.tar_bytes,
                blob: layer.blob.identity,
                skeleton: layer.skeleton.identity,
            });
        }
        Ok(Described {
            answer: ImageAnswer {
                id: image.id,
                config_bytes,
                manifest_bytes: manifest.map(|manifest| manifest.len() as u64),
                layers,
            },
            documents,
        })
    }

    async fn send_image(
        &self,
        send: &mut SendStream,
        found: Result<Result<Option<Described>, StoreError>, GivenUp>,
    ) -> Result<(), GivenUp> {
        match found? {
            Ok(Some(described)) => {
                self.send_message(send, &Answer::Image(described.answer))
                    .await?;
                self.send(send, &described.documents).await
            }
            Ok(None) => self.send_message(send, &Answer::NotHere).await,
            Err(error) => self.send_failure(send, &error).await,
        }
    }

    async fn send_failure(&self, send: &mut SendStream, error: &StoreError) -> Result<(), GivenUp> {
        self.notes.note(format!("cannot answer a peer: {error}"));
        // Where its store is does not concern a peer.
        let problem = "its store cannot be read; the output of `mote node serve` there says why";
        let answer = Answer::Failed {
            problem: problem.to_owned(),
        };
        self.send_message(send, &answer).await
    }

    async fn send_message(&self, send: &mut SendStream, answer: &Answer) -> Result<(), GivenUp> {
        let bytes = message::encode(answer).map_err(|_| GivenUp(Code::Unreadable))?;
        self.send(send, &bytes).await
    }

    async fn send(&self, send: &mut SendStream, bytes: &[u8]) -> Result<(), GivenUp> {
        let step = match self.limit {
            Some(_) => SEND_BYTES,
            None => UNLIMITED_BYTES,
        };
        for part in bytes.chunks(step) {
            bucket::take(&self.limit, part.len()).await;
            match timeout(self.patience.stall, send.write_all(part)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(GivenUp(Code::Done)),
                Err(_) => return Err(GivenUp(Code::TooSlow)),
            }
        }
        Ok(())
    }
}
