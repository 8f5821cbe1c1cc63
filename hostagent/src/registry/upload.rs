//! The body of an upload: read by a thread of its own, sent as it is taken.
//!
//! What goes wrong with the reader is kept apart from what goes wrong with the
//! connection: the one ends the push, the other is tried again.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// How much is read at a time.
const CHUNK: usize = 128 << 10;
/// How many chunks wait: half a MiB.
const CHUNKS: usize = 4;

/// A body of a known length. A reader that ends before that, or goes on after it,
/// fails the upload.
pub(super) struct UploadBody {
    chunks: mpsc::Receiver<Bytes>,
    left: u64,
    sent: Arc<AtomicU64>,
    fault: Fault,
}

/// What went wrong with the reader of an upload.
#[derive(Debug, Clone, Default)]
pub(super) struct Fault(Arc<Mutex<Option<io::Error>>>);

impl Fault {
    /// Takes it, if there is one.
    pub fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, error: io::Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

impl UploadBody {
    /// What [`Self::progress`] shows when everything has been taken.
    pub const ALL: u64 = u64::MAX;

    /// Starts to read. The thread ends with the reader or with the body. Needs a
    /// runtime around it.
    pub fn new(reader: Box<dyn Read + Send>, size: u64) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let fault = Fault::default();
        let found = fault.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = feed(reader, size, &sender) {
                found.set(error);
            }
        });
        let sent = if size == 0 { Self::ALL } else { 0 };
        Self {
            chunks,
            left: size,
            sent: Arc::new(AtomicU64::new(sent)),
            fault,
        }
    }

    /// What goes wrong with the reader.
    pub fn fault(&self) -> Fault {
        self.fault.clone()
    }

    /// The bytes taken so far.
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }
}

/// Reads exactly `size` bytes, and looks whether there are more before it hands out
/// the last of them. It stops when nobody takes them any more.
fn feed(
    mut reader: Box<dyn Read + Send>,
    size: u64,
    sender: &mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        let count = read(&mut reader, &mut chunk)?;
        if count == 0 {
            let message = format!("it ends after {} of {size} bytes", size - left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        chunk.truncate(count);
        left -= count as u64;
        if left == 0 {
            check_end(&mut reader, size)?;
        }
        if sender.blocking_send(Bytes::from(chunk)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn read(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn check_end(reader: &mut dyn Read, size: u64) -> io::Result<()> {
    match read(reader, &mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is longer than {size} bytes"),
        )),
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match self.chunks.poll_recv(context) {
            Poll::Ready(Some(bytes)) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                if self.left == 0 {
                    self.sent.store(Self::ALL, Ordering::Relaxed);
                } else {
                    self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            // The reader has failed; `fault` tells how.
            Poll::Ready(None) => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
