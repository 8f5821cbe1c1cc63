//! Blobs that somebody says are corrupt whose word alone takes nothing out of use: others may
//! run on them. Each is looked at here, and quarantined if it is.
//!
//! One thread does that, beside the run that heard of them and however many are named. Of
//! each it looks first at the span that is named, 1 MiB at most, before it goes on with
//! anything else: what is wrong there is out of use within milliseconds, however long the
//! blob. A blob that is whole there, or of which no span was named, is read to its end.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use outboard::{BlobHash, Geometry};

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
            if let Some(verdict) = reading.go_on(store) {
                tell(reading.suspect.identity.hash, verdict);
                readings.pop_front();
            }
            continue;
        };
        let named = suspect
            .span
            .filter(|span| *span < spans(suspect.identity))
            .and_then(|span| look(store, &suspect, span).unwrap_or_else(failed));
        match named {
            Some(verdict) => tell(suspect.identity.hash, verdict),
            None => readings.push_back(Reading { suspect, next: 0 }),
        }
    }
}

impl Reading {
    /// Looks at one more span. What turned out, if that is known now.
    fn go_on(&mut self, store: &Store) -> Option<Verdict> {
        if self.next >= spans(self.suspect.identity) {
            return Some(Verdict::Whole);
        }
        let found = look(store, &self.suspect, self.next).unwrap_or_else(failed);
        self.next += 1;
        found
    }
}

fn failed(error: StoreError) -> Option<Verdict> {
    Some(Verdict::Failed(error))
}

fn spans(identity: BlobIdentity) -> u64 {
    Geometry::of(identity.bytes).spans()
}

/// Looks at one span; `None` if nothing is wrong there.
fn look(store: &Store, suspect: &Suspect, span: u64) -> Result<Option<Verdict>, StoreError> {
    let identity = suspect.identity;
    let is_in_part = |partial: &&Arc<PartialBlob>| partial.missing() > 0;
    let Some(partial) = suspect.partial.as_ref().filter(is_in_part) else {
        // One that is complete is a blob like any other.
        let corrupt = store.quarantine_if_span_corrupt(identity, span)?;
        return Ok(corrupt.then_some(Verdict::Quarantined));
    };
    if !store.mend_partial_span(partial, span)? {
        return Ok(None);
    }
    // It may have been completed meanwhile, and then is out of use only when it is
    // quarantined.
    let is_there = store.blob_identity(identity.hash).is_some();
    match is_there && store.quarantine_if_span_corrupt(identity, span)? {
        true => Ok(Some(Verdict::Quarantined)),
        false => Ok(Some(Verdict::Forgotten)),
    }
}

#[cfg(test)]
#[path = "suspects_tests.rs"]
mod tests;
