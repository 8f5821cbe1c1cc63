//! Fetching the parts of blobs: what somebody waits for first, then what earlier starts
//! read, then the rest.
//!
//! A few threads do it. Each takes a run of missing groups, asks peers and the registry for
//! it, and writes it, verified, to the partial blob. While somebody waits, nothing else is begun.
//!
//! The rest begins when the workload has started up: when it has written something, or,
//! since not all do, when it has run for a while without reading what is missing. What is
//! on its way for nobody holds up what a start waits for, a third of a second at 50 Mbit/s.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::artifact::Access;
pub use super::error::FetchError;
use super::queue::{Phase, Queue};
use super::upstream::{Clients, Upstream};
use crate::image::digest::Digest;
use crate::registry::{RegistryError, Repository};
use crate::store::{PartialBlob, Store};

/// Threads, and so requests at a time.
const WORKERS: usize = 3;
/// Groups that are asked for at once for somebody who waits: 256 KiB. What is read next is
/// near, mostly, and a request takes a while whatever it asks for.
const WANTED_GROUPS: u64 = 16;
/// Groups that are asked for at once for nobody: 1 MiB.
const BACKGROUND_GROUPS: u64 = 64;
/// How often what has arrived is brought to disk.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// After so many failures in a row nothing is fetched any more that nobody waits for.
const MAX_FAILURES: u32 = 3;

/// A blob to be filled.
#[derive(Debug)]
pub struct Source {
    /// Its files.
    pub partial: Arc<PartialBlob>,
    /// What the registry calls it.
    pub digest: Digest,
}

/// Who hears how it goes. Called by the threads.
pub trait Listener: Send + Sync {
    /// Some of these groups of a blob are there now; or those of them that are not there
    /// will not be.
    fn fetched(&self, blob: usize, groups: Range<u64>, present: bool);

    /// Something failed: what waited for it has been told, unless others are asked for it.
    fn failed(&self, error: &FetchError);
}

/// Fetches, until it is dropped.
pub struct Fetcher {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    store: Arc<Store>,
    clients: Clients,
    repository: Repository,
    sources: Vec<Source>,
    listener: Arc<dyn Listener>,
    queue: Mutex<Queue>,
    more: Condvar,
    fetched_bytes: Arc<AtomicU64>,
}

impl Fetcher {
    /// Begins to fetch `sources`, which `repository` has, those of `first` first.
    pub fn start(
        store: Arc<Store>,
        clients: Clients,
        repository: Repository,
        sources: Vec<Source>,
        first: &[Access],
        listener: Arc<dyn Listener>,
    ) -> std::io::Result<Self> {
        let early = first.iter().map(|access| {
            let end = access.first_group.saturating_add(access.groups.into());
            (access.blob as usize, access.first_group..end)
        });
        let early = early.filter(|(blob, _)| *blob < sources.len());
        let all = sources.iter().enumerate();
        let all = all.map(|(index, source)| (index, 0..source.partial.groups()));
        let queue = Queue {
            early: early.collect(),
            rest: all.collect(),
            ..Queue::default()
        };
        let shared = Arc::new(Shared {
            store,
            clients,
            repository,
            sources,
            listener,
            queue: Mutex::new(queue),
            more: Condvar::new(),
            fetched_bytes: Arc::new(AtomicU64::new(0)),
        });
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let shared = Arc::clone(&shared);
            let worker = std::thread::Builder::new()
                .name(format!("fetch{number}"))
                .spawn(move || shared.work(number == 0));
            workers.push(worker?);
        }
        Ok(Self { shared, workers })
    }

    /// Asks for groups of a blob that somebody waits for. Returns whether all are there;
    /// if not, the listener hears of each of them.
    pub fn want(&self, blob: usize, groups: Range<u64>) -> bool {
        let shared = &self.shared;
        let Some(source) = shared.sources.get(blob) else {
            return true;
        };
        let mut queue = shared.queue();
        queue.note(blob, &groups);
        if let Phase::StartUp(since) = &mut queue.phase {
            *since = Instant::now();
        }
        if source.partial.next_missing(groups.clone(), 1).is_none() {
            return true;
        }
        queue.wanted.push_back((blob, groups));
        drop(queue);
        shared.more.notify_all();
        false
    }

    /// What may be told of the workload whose disk this is.
    pub fn start_up(&self) -> StartUp {
        StartUp(Arc::clone(&self.shared))
    }

    /// The blobs that are filled.
    pub fn partials(&self) -> Vec<Arc<PartialBlob>> {
        let sources = self.shared.sources.iter();
        sources.map(|source| Arc::clone(&source.partial)).collect()
    }

    /// What was wanted until now, in order.
    pub fn accesses(&self) -> Vec<Access> {
        self.shared.queue().accesses.clone()
    }

    /// How many bytes have come, of those that are right, counted as they come.
    pub fn fetched_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.fetched_bytes)
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.shared.queue().stopped = true;
        self.shared.more.notify_all();
        for worker in self.workers.drain(..) {
            // One that has panicked has nothing more to say.
            let _ = worker.join();
        }
        for source in &self.shared.sources {
            if let Err(error) = self.shared.store.save_partial(&source.partial) {
                self.shared.listener.failed(&error.into());
            }
        }
    }
}

/// Hears how far the workload has come.
#[derive(Clone)]
pub struct StartUp(Arc<Shared>);

impl StartUp {
    /// It has been started.
    pub fn begun(&self) {
        let mut queue = self.0.queue();
        if let Phase::Boot = queue.phase {
            queue.phase = Phase::StartUp(Instant::now());
            self.0.more.notify_all();
        }
    }

    /// It has started up.
    pub fn over(&self) {
        self.0.queue().phase = Phase::Work;
        self.0.more.notify_all();
    }
}

/// A run of groups to be fetched.
struct Run {
    blob: usize,
    first: u64,
    count: u64,
    wanted: bool,
}

impl Run {
    /// The pieces it touches, each with its blob.
    fn pieces(&self) -> impl Iterator<Item = (usize, u64)> + use<> {
        let blob = self.blob;
        let end = (self.first + self.count).div_ceil(WANTED_GROUPS);
        (self.first / WANTED_GROUPS..end).map(move |piece| (blob, piece))
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches until it is told to stop. One of the workers does nothing that nobody waits
    /// for, so that what is wanted begins at once.
    fn work(&self, only_wanted: bool) {
        loop {
            let run = {
                let mut queue = self.queue();
                loop {
                    if queue.stopped {
                        return;
                    }
                    // Asked once: between two answers the time may have come.
                    let rest_waits = queue.rest_waits();
                    let rest_begins = rest_waits == Some(Duration::ZERO);
                    if let Some(run) = self.next_run(&mut queue, only_wanted, rest_begins) {
                        break run;
                    }
                    queue = match rest_waits {
                        Some(time) if !time.is_zero() => {
                            let waited = self.more.wait_timeout(queue, time);
                            waited.unwrap_or_else(PoisonError::into_inner).0
                        }
                        _ => {
                            let waited = self.more.wait(queue);
                            waited.unwrap_or_else(PoisonError::into_inner)
                        }
                    };
                }
            };
            let outcome = self.fetch(&run);
            self.finish(&run, outcome);
        }
    }

    fn next_run(&self, queue: &mut Queue, only_wanted: bool, rest_begins: bool) -> Option<Run> {
        if let Some(run) = self.next_wanted(queue) {
            return Some(run);
        }
        // Somebody waits for what is on its way: it has the connection for itself.
        let may_go_ahead = queue.wanted.is_empty() && queue.failures < MAX_FAILURES;
        match may_go_ahead && !only_wanted {
            true => self.next_in_background(queue, rest_begins),
            false => None,
        }
    }

    /// What somebody waits for and is not on its way, from the start of a piece on, so that
    /// neighbours need no request of their own.
    fn next_wanted(&self, queue: &mut Queue) -> Option<Run> {
        let partial = |blob: usize| &self.sources[blob].partial;
        queue
            .wanted
            .retain(|(blob, groups)| partial(*blob).next_missing(groups.clone(), 1).is_some());
        let found = queue.wanted.iter().find_map(|(blob, groups)| {
            let pieces = groups.start / WANTED_GROUPS..groups.end.div_ceil(WANTED_GROUPS);
            pieces.into_iter().find_map(|piece| {
                let whole = piece * WANTED_GROUPS..(piece + 1) * WANTED_GROUPS;
                let asked = groups.start.max(whole.start)..groups.end.min(whole.end);
                let on_the_way = queue.on_the_way.contains(&(*blob, piece));
                partial(*blob)
                    .next_missing(asked, 1)
                    .filter(|_| !on_the_way)?;
                let (first, _) = partial(*blob).next_missing(whole.clone(), 1)?;
                Some(Run {
                    blob: *blob,
                    first,
                    count: whole.end.min(partial(*blob).groups()) - first,
                    wanted: true,
                })
            })
        });
        queue.on_the_way.extend(found.iter().flat_map(Run::pieces));
        found
    }

    /// The first missing groups that are not on their way. What failed is tried again, until
    /// too much has failed in a row.
    fn next_in_background(&self, queue: &mut Queue, rest_begins: bool) -> Option<Run> {
        let missing = |(blob, groups): &(usize, Range<u64>)| {
            let partial = &self.sources[*blob].partial;
            partial.next_missing(groups.clone(), 1).is_some()
        };
        for some in [&mut queue.early, &mut queue.rest] {
            while some.front().is_some_and(|front| !missing(front)) {
                some.pop_front();
            }
        }
        let rest = match rest_begins {
            true => queue.rest.iter(),
            false => Default::default(),
        };
        let found = queue.early.iter().chain(rest).find_map(|(blob, groups)| {
            let partial = &self.sources[*blob].partial;
            let busy = |group: u64| queue.on_the_way.contains(&(*blob, group / WANTED_GROUPS));
            let mut start = groups.start;
            loop {
                let (first, count) = partial.next_missing(start..groups.end, BACKGROUND_GROUPS)?;
                if busy(first) {
                    start = (first / WANTED_GROUPS + 1) * WANTED_GROUPS;
                    continue;
                }
                let end = (first..first + count).find(|group| busy(*group));
                return Some(Run {
                    blob: *blob,
                    first,
                    count: end.unwrap_or(first + count) - first,
                    wanted: false,
                });
            }
        });
        queue.on_the_way.extend(found.iter().flat_map(Run::pieces));
        found
    }

    fn fetch(&self, run: &Run) -> Result<(), FetchError> {
        let source = &self.sources[run.blob];
        let upstream = Upstream {
            store: &self.store,
            clients: &self.clients,
            repository: &self.repository,
        };
        let groups = run.first..run.first + run.count;
        let tell = |error: &FetchError| self.listener.failed(error);
        let stopped = || self.queue().stopped;
        let bytes = upstream.groups(&source.partial, source.digest, groups, &tell, &stopped)?;
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn finish(&self, run: &Run, outcome: Result<(), FetchError>) {
        let groups = run.first..run.first + run.count;
        let mut save = None;
        {
            let mut queue = self.queue();
            for piece in run.pieces() {
                queue.on_the_way.remove(&piece);
            }
            match &outcome {
                Ok(()) => queue.failures = 0,
                Err(_) => queue.failures += 1,
            }
            if run.wanted && outcome.is_err() {
                // Whoever waits for any of this is told, and may ask again.
                queue.wanted.retain(|(blob, wanted)| {
                    let concerned =
                        *blob == run.blob && wanted.start < groups.end && groups.start < wanted.end;
                    !concerned
                });
            }
            let due = queue
                .last_save
                .is_none_or(|last| last.elapsed() >= SAVE_INTERVAL);
            let complete = self.sources[run.blob].partial.missing() == 0;
            if due || complete {
                queue.last_save = Some(Instant::now());
                save = Some(complete);
            }
        }
        if run.wanted || outcome.is_ok() {
            self.listener.fetched(run.blob, groups, outcome.is_ok());
        }
        match outcome {
            // The end of this process is no failure.
            Err(FetchError::Registry(RegistryError::Cancelled)) | Ok(()) => {}
            Err(error) => self.listener.failed(&error),
        }
        if let Some(complete) = save {
            let due = self.sources.iter().enumerate();
            let due = due.filter(|(index, _)| !complete || *index == run.blob);
            for (_, source) in due {
                if let Err(error) = self.store.save_partial(&source.partial) {
                    self.listener.failed(&error.into());
                }
            }
        }
        self.more.notify_all();
    }
}
