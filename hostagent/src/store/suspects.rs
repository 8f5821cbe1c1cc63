//! Blobs that somebody says are corrupt whose word alone takes nothing out of use: others may
//! run on them. Each is looked at here, and quarantined if it is.
//!
//! One thread does that, beside the run that heard of them and however many are named. Of
//! each it looks first at the span that is named, 1 MiB at most, before it goes on with
//! anything else: what is wrong there is out of use within milliseconds, however long the
//! blob. A blob that is whole there, or is here in part, or of which no span was named, is
//! read to its end.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use outboard::{BlobHash, Geometry};

use super::partial::Mended;
use super::{BlobIdentity, PartialBlob, Store, StoreError};

/// A blob that is said to be corrupt.
#[derive(Debug)]
pub struct Suspect {
    /// Which one.
    pub identity: BlobIdentity,
    /// The number of the span that is said to be wrong. One that it has not is as good as
    /// none: whoever names it may be a guest that has taken over its VMM.
    pub span: Option<u64>,
    /// What is here of it, where it was in part when it was opened.
    pub partial: Option<Arc<PartialBlob>>,
}

/// What turned out.
#[derive(Debug)]
pub enum Verdict {
    /// It was corrupt, and is out of use.
    Quarantined,
    /// What is here of it in part was wrong, and counts as missing now.
    Forgotten,
    /// It is what it should be, as this host reads it now.
    Whole,
    /// It could not be looked at, or not be taken out of use.
    Failed(StoreError),
}

/// What looks at suspects, until it is dropped.
#[derive(Debug)]
pub struct Suspects {
    queue: Sender<Suspect>,
    /// Closed when the thread has ended.
    done: Receiver<()>,
    stop: Arc<AtomicBool>,
}

impl Suspects {
    /// None yet. `tell` hears of each what turned out, on the thread that looks.
    pub fn begin(
        store: Arc<Store>,
        tell: impl FnMut(BlobHash, Verdict) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, suspects) = channel();
        let (end, done) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let look = move || {
            let _end: Sender<()> = end;
            look_at_all(&store, &suspects, &stopped, tell);
        };
        std::thread::Builder::new()
            .name("suspects".to_owned())
            .spawn(look)?;
        Ok(Self { queue, done, stop })
    }

    /// Has a blob looked at; waits for nobody.
    pub fn add(&self, suspect: Suspect) {
        // If the thread has panicked nobody listens; the next verification finds it.
        let _ = self.queue.send(suspect);
    }

    /// Waits until all have been looked at, but no longer than `timeout`; what is not done
    /// then is given up. Returns whether all is done.
    pub fn finish(mut self, timeout: Duration) -> bool {
        // The thread ends when it has done what is in the queue.
        self.queue = channel().0;
        let done = self.done.recv_timeout(timeout);
        done != Err(std::sync::mpsc::RecvTimeoutError::Timeout)
    }
}

impl Drop for Suspects {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A blob that is read to its end.
struct Reading {
    suspect: Suspect,
    next: u64,
    /// Whether something of it was forgotten, which is told once.
    has_forgotten: bool,
}

fn look_at_all(
    store: &Store,
    suspects: &Receiver<Suspect>,
    stop: &AtomicBool,
    mut tell: impl FnMut(BlobHash, Verdict),
) {
    let mut readings: VecDeque<Reading> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let added = match readings.is_empty() {
            true => suspects.recv().ok(),
            false => suspects.try_recv().ok(),
        };
        let Some(suspect) = added else {
            let Some(reading) = readings.front_mut() else {
                return;
            };
            if reading.go_on(store, &mut tell) {
                readings.pop_front();
            }
            continue;
        };
        let named = suspect.span.filter(|span| *span < spans(suspect.identity));
        let mut reading = Reading {
            suspect,
            next: 0,
            has_forgotten: false,
        };
        if !named.is_some_and(|span| reading.look(store, span, &mut tell)) {
            readings.push_back(reading);
        }
    }
}

impl Reading {
    /// Looks at one more span. Whether nothing is left to be looked at.
    fn go_on(&mut self, store: &Store, tell: &mut impl FnMut(BlobHash, Verdict)) -> bool {
        if self.next >= spans(self.suspect.identity) {
            if !self.has_forgotten {
                tell(self.suspect.identity.hash, Verdict::Whole);
            }
            return true;
        }
        self.next += 1;
        self.look(store, self.next - 1, tell)
    }

    /// Looks at a span. Whether nothing else of it has to be looked at.
    fn look(&mut self, store: &Store, span: u64, tell: &mut impl FnMut(BlobHash, Verdict)) -> bool {
        let hash = self.suspect.identity.hash;
        let mut forgotten = |reading: &mut Self| {
            if !std::mem::replace(&mut reading.has_forgotten, true) {
                tell(hash, Verdict::Forgotten);
            }
        };
        match look(store, &self.suspect, span) {
            Ok(Found::Nothing) => false,
            Ok(Found::Forgotten(Mended::All)) => {
                forgotten(self);
                true
            }
            Ok(Found::Forgotten(_)) => {
                forgotten(self);
                false
            }
            Ok(Found::Quarantined) => {
                tell(hash, Verdict::Quarantined);
                true
            }
            Err(error) => {
                tell(hash, Verdict::Failed(error));
                true
            }
        }
    }
}

/// What was wrong in a span.
enum Found {
    Nothing,
    /// What is here of the blob in part.
    Forgotten(Mended),
    Quarantined,
}

fn spans(identity: BlobIdentity) -> u64 {
    Geometry::of(identity.bytes).spans()
}

/// Looks at one span, and takes what is wrong there out of use.
fn look(store: &Store, suspect: &Suspect, span: u64) -> Result<Found, StoreError> {
    let identity = suspect.identity;
    let is_there = || store.blob_identity(identity.hash).is_some();
    let mut found = Found::Nothing;
    if let Some(partial) = &suspect.partial
        && (partial.missing() > 0 || !is_there())
    {
        found = match store.mend_partial_span(partial, span)? {
            Mended::Nothing => return Ok(found),
            mended => Found::Forgotten(mended),
        };
        if !is_there() {
            return Ok(found);
        }
        // It has been completed meanwhile, and is out of use only when it is quarantined.
    }
    // One that is complete is a blob like any other.
    Ok(match store.quarantine_if_span_corrupt(identity, span)? {
        true => Found::Quarantined,
        false => found,
    })
}

#[cfg(test)]
#[path = "suspects_tests.rs"]
mod tests;
