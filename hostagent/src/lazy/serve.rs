//! Answering a VMM that asks for what is missing of its disk's blobs.

use std::io::Read;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use vmm::fetch::{MAX_REQUESTS, Reply, Request};

use super::artifact::Access;
use super::fetch::{FetchError, Fetcher, Listener, Source, StartUp};
use super::upstream::Clients;
use crate::registry::Repository;
use crate::store::{PartialBlob, Store};

/// Where the blobs of a disk are.
#[derive(Debug, Clone)]
pub struct Extents(
    /// For each extent of the disk, which of the fetcher's sources it is, if it is partial,
    /// and how many groups it has.
    pub Vec<Option<(usize, u64)>>,
);

/// Serves one disk, until it is dropped.
pub struct Server {
    fetcher: Arc<Fetcher>,
    socket: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// Requests that wait.
struct Waiters {
    /// Our end of the socket; a packet is a message.
    socket: UnixStream,
    waiting: Mutex<Vec<Waiter>>,
    partials: Vec<Arc<PartialBlob>>,
    tell: Box<dyn Fn(&FetchError) + Send + Sync>,
}

struct Waiter {
    id: u32,
    source: usize,
    groups: Range<u64>,
}

impl Waiters {
    fn reply(&self, id: u32, present: bool) {
        // Waits for no VMM: one that does not read its answers gets none any more.
        let bytes = Reply { id, present }.encode();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if send(&self.socket, &bytes, flags).is_err() {
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Listener for Waiters {
    fn fetched(&self, blob: usize, groups: Range<u64>, present: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|waiter| {
            let concerns = waiter.source == blob
                && groups.start < waiter.groups.end
                && waiter.groups.start < groups.end;
            if !concerns {
                return true;
            }
            let partial = &self.partials[waiter.source];
            let missing = partial.next_missing(waiter.groups.clone(), 1).is_some();
            if present && missing {
                return true;
            }
            self.reply(waiter.id, !missing);
            false
        });
    }

    fn failed(&self, error: &FetchError) {
        (self.tell)(error);
    }
}

/// What is needed to fetch the blobs of an image.
pub struct Origin {
    /// The store with the partial blobs.
    pub store: Arc<Store>,
    /// Whom to ask.
    pub clients: Clients,
    /// The repository that has them.
    pub repository: Repository,
    /// The blobs.
    pub sources: Vec<Source>,
    /// What earlier starts read.
    pub first: Vec<Access>,
}

impl Server {
    /// Begins to serve; returns the VMM's end of the socket too. `tell` hears what could
    /// not be fetched, and why.
    pub fn start(
        origin: Origin,
        extents: Extents,
        tell: Box<dyn Fn(&FetchError) + Send + Sync>,
    ) -> std::io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let socket = UnixStream::from(ours);
        let waiters = Arc::new(Waiters {
            socket: socket.try_clone()?,
            waiting: Mutex::new(Vec::new()),
            partials: origin
                .sources
                .iter()
                .map(|source| Arc::clone(&source.partial))
                .collect(),
            tell,
        });
        let listener: Arc<dyn Listener> = waiters.clone();
        let fetcher = Arc::new(Fetcher::start(
            origin.store,
            origin.clients,
            origin.repository,
            origin.sources,
            &origin.first,
            listener,
        )?);
        let (reading, asked) = (socket.try_clone()?, Arc::clone(&fetcher));
        let thread = std::thread::Builder::new()
            .name("serve-disk".to_owned())
            .spawn(move || serve(&reading, &asked, &waiters, &extents))?;
        let server = Self {
            fetcher,
            socket,
            thread: Some(thread),
        };
        Ok((server, theirs))
    }

    /// The blobs that are filled.
    pub fn partials(&self) -> Vec<Arc<PartialBlob>> {
        self.fetcher.partials()
    }

    /// What its guest has read that was missing, in order.
    pub fn accesses(&self) -> Vec<Access> {
        self.fetcher.accesses()
    }

    /// What may be told of the workload whose disk this is.
    pub fn start_up(&self) -> StartUp {
        self.fetcher.start_up()
    }

    /// How many bytes have come.
    pub fn fetched_bytes(&self) -> Arc<AtomicU64> {
        self.fetcher.fetched_bytes()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the thread's read.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes requests until the VMM is gone, or asks for what no VMM would.
fn serve(mut socket: &UnixStream, fetcher: &Fetcher, waiters: &Waiters, extents: &Extents) {
    loop {
        let mut bytes = [0; Request::BYTES + 1];
        let count = match socket.read(&mut bytes) {
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return,
        };
        let request = Request::decode(&bytes[..count]);
        let place = request.and_then(|request| {
            let (source, groups) = (*extents.0.get(request.extent as usize)?)?;
            let end = request.first_group.checked_add(request.groups.into())?;
            (end <= groups).then_some((request.id, source, request.first_group..end))
        });
        let Some((id, source, groups)) = place else {
            let _ = socket.shutdown(std::net::Shutdown::Both);
            return;
        };
        {
            let mut waiting = waiters
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= MAX_REQUESTS {
                let _ = socket.shutdown(std::net::Shutdown::Both);
                return;
            }
            // Before it is wanted: it may be there at once.
            waiting.push(Waiter {
                id,
                source,
                groups: groups.clone(),
            });
        }
        if fetcher.want(source, groups.clone()) {
            waiters.fetched(source, groups, true);
        }
    }
}
