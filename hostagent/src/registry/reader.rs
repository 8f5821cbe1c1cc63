//! A blob as a [`Read`], for code that knows nothing of registries.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::download::Download;
use super::error::RegistryError;
use super::provenance::Provenance;
use crate::runtime::Runtime;

/// Tells whether a download is still wanted; asked about every 100 ms, on the
/// thread that reads.
pub type Cancel = Arc<dyn Fn() -> bool + Send + Sync>;

/// The content of a blob, as it is downloaded.
///
/// It gives exactly as many bytes as the descriptor says, or an error. **It does not
/// check the digest**: whoever reads it does, before the content is used, and if it is
/// another, [`Provenance::reject`] tells whether to begin anew.
///
/// A connection that breaks or stalls is replaced by another one that goes on where
/// it was. Little is in memory: what the HTTP client has read from the connection,
/// which is at most two pieces of 400 KiB; it reads on only as these are taken.
///
/// An error of [`Read::read`] is an [`io::Error`] of kind `Other` that wraps the
/// [`RegistryError`]; [`BlobReader::error_in`] finds that again. After it every read
/// fails. Dropping the reader ends the download.
pub struct BlobReader {
    /// `None` after an error.
    download: Option<Download>,
    provenance: Provenance,
    chunk: Bytes,
    cancel: Cancel,
    // After the download: its connections belong to the runtime.
    runtime: Arc<Runtime>,
}

impl BlobReader {
    pub(super) fn new(runtime: &Arc<Runtime>, download: Download, cancel: Cancel) -> Self {
        Self {
            provenance: download.provenance(),
            download: Some(download),
            chunk: Bytes::new(),
            cancel,
            runtime: Arc::clone(runtime),
        }
    }

    /// Who has given what is read, now and later.
    pub fn provenance(&self) -> Provenance {
        self.provenance.clone()
    }

    /// The registry's error in an error of [`Read::read`].
    pub fn error_in(error: &io::Error) -> Option<&RegistryError> {
        error.get_ref()?.downcast_ref()
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.chunk.is_empty() {
            let Some(download) = &mut self.download else {
                return Err(io::Error::other("the download has failed before"));
            };
            let cancel = Arc::clone(&self.cancel);
            match self.runtime.run(&*cancel, download.next()) {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => return Ok(0),
                Err(error) => {
                    self.download = None;
                    return Err(io::Error::other(error));
                }
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader").finish_non_exhaustive()
    }
}
