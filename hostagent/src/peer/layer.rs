//! A layer of peers as a tar stream: put together while blob and skeleton arrive.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use erofs::image::ReadAt;

use super::Cancel;
use super::blob::BlobStream;
use super::error::PeerError;
use super::message::LayerAnswer;
use super::session::Session;
use crate::image::layer::LayerContent;
use crate::runtime::Runtime;
use crate::store::{BlobIdentity, TarParts};

/// Groups of a skeleton that are asked for at a time. What a skeleton says of one large file
/// is a few bytes, and nothing more is read of it until that file is there: what has been
/// asked for must fit into the window of its stream, so that the peer need not wait.
const SKELETON_STEP: u64 = 48;

/// A layer that peers have, as one of them says.
pub(super) struct PeerLayer {
    pub session: Arc<Session>,
    pub runtime: Arc<Runtime>,
    pub cancel: Cancel,
    pub trouble: Arc<Trouble>,
    pub max_skeleton_bytes: u64,
    pub layer: LayerAnswer,
}

/// Why blobs did not arrive, for whoever gets to see only what came of it.
#[derive(Debug, Default)]
pub(super) struct Trouble(Mutex<Option<PeerError>>);

impl Trouble {
    fn set(&self, error: PeerError) -> io::Error {
        let shown = io::Error::other(error.to_string());
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        shown
    }

    pub fn take(&self) -> Option<PeerError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for PeerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLayer")
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

impl PeerLayer {
    fn reader(&self, identity: BlobIdentity, step: u64) -> BlobReader {
        BlobReader {
            stream: BlobStream::new(Arc::clone(&self.session), identity, step),
            at_hand: Vec::new(),
            start: 0,
            position: 0,
            runtime: Arc::clone(&self.runtime),
            cancel: Arc::clone(&self.cancel),
            trouble: Arc::clone(&self.trouble),
        }
    }
}

impl LayerContent for PeerLayer {
    fn length(&self) -> u64 {
        self.layer.tar_bytes
    }

    /// The tar stream. Nothing is kept of blob and skeleton: a skeleton takes what it needs
    /// of its blob in ascending order.
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let parts = TarParts {
            skeleton: self.reader(self.layer.skeleton, SKELETON_STEP),
            blob: Ascending(Mutex::new(self.reader(self.layer.blob, u64::MAX))),
            blob_bytes: self.layer.blob.bytes,
            max_skeleton_bytes: self.max_skeleton_bytes,
        };
        // One byte more shows in the digest.
        let tar = parts
            .assemble()?
            .take(self.layer.tar_bytes.saturating_add(1));
        Ok(Box::new(tar))
    }
}

/// Reads a blob of peers in ascending order.
struct BlobReader {
    stream: BlobStream,
    at_hand: Vec<u8>,
    /// Where in the blob they begin.
    start: u64,
    /// Where [`Read`] goes on.
    position: u64,
    // After the stream: its connections belong to the runtime.
    runtime: Arc<Runtime>,
    cancel: Cancel,
    trouble: Arc<Trouble>,
}

impl BlobReader {
    /// Bytes from `offset` on, which is nowhere before what was asked for last; none at the
    /// end.
    fn at(&mut self, offset: u64) -> io::Result<&[u8]> {
        while offset >= self.start + self.at_hand.len() as u64 {
            let next = self.runtime.run(&*self.cancel, self.stream.next());
            let next = next.map_err(|error| self.trouble.set(error))?;
            let Some((mut bytes, verified)) = next else {
                return Ok(&[]);
            };
            bytes.truncate(verified.data.end);
            bytes.drain(..verified.data.start);
            self.at_hand = bytes;
            self.start = verified.offset;
        }
        let backwards = || io::Error::other("a skeleton that goes back in its blob");
        let from = offset.checked_sub(self.start).ok_or_else(backwards)?;
        Ok(self.at_hand.get(from as usize..).unwrap_or_default())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let found = self.at(self.position)?;
        let count = found.len().min(buffer.len());
        buffer[..count].copy_from_slice(&found[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

/// A blob of peers, for whoever reads its ranges in ascending order.
struct Ascending(Mutex<BlobReader>);

impl ReadAt for Ascending {
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !buffer.is_empty() {
            let found = reader.at(offset)?;
            let count = found.len().min(buffer.len());
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, later) = buffer.split_at_mut(count);
            now.copy_from_slice(&found[..count]);
            buffer = later;
            offset += count as u64;
        }
        Ok(())
    }
}
