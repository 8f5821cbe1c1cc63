//! Disks some of whose blobs are not all on this host yet.
//!
//! Before a read begins, what it needs and may not be there is asked for, from the agent
//! ([`crate::fetch`]); it begins when the agent has answered. Nothing of the guest's is
//! touched before that: a reset forgets what waits.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use outboard::GROUP_BYTES;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};

use super::{BlockBackend, Operation, Ticket};
use crate::devices::virtio::watch::Watch;
use crate::fetch::{MAX_GROUPS, MAX_REQUESTS, Reply, Request};

/// Replies taken in one turn: all there can be, and the end.
const REPLIES: usize = MAX_REQUESTS + 1;

/// An extent, as far as this matters.
#[derive(Debug)]
pub struct Piece {
    /// Where on the disk it begins.
    pub start: u64,
    /// How long it is.
    pub length: u64,
    /// Whether parts of it may be missing.
    pub partial: bool,
}

/// The disk.
pub struct LazyDisk {
    inner: Box<dyn BlockBackend>,
    source: OwnedFd,
    /// The agent is there.
    open: bool,
    pieces: Vec<Presence>,
    /// By their first request, in order.
    waiting: Vec<Waiting>,
    /// Requests without an answer.
    asked: HashMap<u32, Asked>,
    /// Requests that there was no room for.
    unsent: VecDeque<Request>,
    next_id: u32,
    next_serial: u64,
    /// Reads that have nothing to wait for any more.
    startable: VecDeque<(Ticket, Operation)>,
    /// What has ended.
    ended: VecDeque<(Ticket, io::Result<()>)>,
    watch: Watch,
}

#[derive(Debug)]
struct Presence {
    start: u64,
    length: u64,
    /// A bit for each group that is known to be there; `None` if all are.
    groups: Option<Vec<u64>>,
}

struct Waiting {
    serial: u64,
    ticket: Ticket,
    operation: Operation,
    /// Requests without an answer.
    left: usize,
    /// One of them failed.
    failed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    request: Request,
    /// Which read it is for; none that waits, if that was forgotten.
    serial: u64,
}

impl LazyDisk {
    /// Shows `inner`, which consists of `pieces`; `source` is the agent's socket.
    pub fn new(
        inner: Box<dyn BlockBackend>,
        pieces: Vec<Piece>,
        source: OwnedFd,
    ) -> io::Result<Self> {
        let sources = std::iter::once(source.as_fd()).chain(inner.completions());
        let watch = Watch::new(sources)?;
        let pieces = pieces.into_iter().map(|piece| Presence {
            start: piece.start,
            length: piece.length,
            groups: piece.partial.then(|| {
                let words = piece.length.div_ceil(GROUP_BYTES).div_ceil(64);
                // As large as a bit for each 16 KiB of a file that is there.
                vec![0; usize::try_from(words).unwrap_or(usize::MAX)]
            }),
        });
        Ok(Self {
            pieces: pieces.collect(),
            inner,
            source,
            open: true,
            waiting: Vec::new(),
            asked: HashMap::new(),
            unsent: VecDeque::new(),
            next_id: 0,
            next_serial: 0,
            startable: VecDeque::new(),
            ended: VecDeque::new(),
            watch,
        })
    }

    /// What must be asked for before these bytes can be read.
    fn missing(&mut self, offset: u64, length: u64) -> Vec<Request> {
        let mut requests = Vec::new();
        let end = offset.saturating_add(length);
        let first = self
            .pieces
            .partition_point(|piece| piece.start + piece.length <= offset);
        for (piece, extent) in self.pieces[first..].iter().zip(first..) {
            if piece.start >= end {
                break;
            }
            let Some(groups) = &piece.groups else {
                continue;
            };
            let from = offset.max(piece.start) - piece.start;
            let to = end.min(piece.start + piece.length) - piece.start;
            let range = from / GROUP_BYTES..to.div_ceil(GROUP_BYTES);
            let is_missing = |group: &u64| !has(groups, *group);
            let (first, last) = match (
                range.clone().find(is_missing),
                range.clone().rev().find(is_missing),
            ) {
                (Some(first), Some(last)) => (first, last),
                _ => continue,
            };
            let mut group = first;
            while group <= last {
                let count = (last + 1 - group).min(u64::from(MAX_GROUPS));
                requests.push(Request {
                    id: self.next_id,
                    extent: u32::try_from(extent).unwrap_or(u32::MAX),
                    first_group: group,
                    groups: count as u32,
                });
                self.next_id = self.next_id.wrapping_add(1);
                group += count;
            }
        }
        requests
    }

    /// Sends what there is room for. The agent answers everything, so there will be more.
    fn send(&mut self) {
        while let Some(request) = self.unsent.front() {
            let unanswered = self.asked.len() - self.unsent.len();
            if unanswered >= MAX_REQUESTS {
                return;
            }
            let bytes = request.encode();
            let sent = sendmsg(
                &self.source,
                &[io::IoSlice::new(&bytes)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(_) => {
                    self.unsent.pop_front();
                }
                Err(rustix::io::Errno::AGAIN) if unanswered > 0 => return,
                Err(rustix::io::Errno::INTR) => {}
                // The host has no memory for it, for now.
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM) => {
                    return self.watch.wake_again();
                }
                Err(_) => self.lose_agent(),
            }
        }
    }

    /// Takes answers, in one turn.
    fn receive(&mut self) {
        for _ in 0..REPLIES {
            let mut bytes = [0; Reply::BYTES + 1];
            let received = recvmsg(
                &self.source,
                &mut [io::IoSliceMut::new(&mut bytes)],
                &mut RecvAncillaryBuffer::default(),
                RecvFlags::DONTWAIT,
            );
            match received {
                Ok(received) => match Reply::decode(&bytes[..received.bytes]) {
                    Some(reply) => self.take(reply),
                    // Its end, or an agent that is none.
                    None => return self.lose_agent(),
                },
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return self.lose_agent(),
            }
        }
        // There is more.
        self.watch.wake_again();
    }

    fn take(&mut self, reply: Reply) {
        // An answer to what was never asked would be counted as one that was.
        if self.unsent.iter().any(|request| request.id == reply.id) {
            return self.lose_agent();
        }
        let Some(asked) = self.asked.remove(&reply.id) else {
            return;
        };
        let request = asked.request;
        if reply.present {
            let piece = self.pieces.get_mut(request.extent as usize);
            if let Some(groups) = piece.and_then(|piece| piece.groups.as_mut()) {
                let range = request.first_group..request.first_group + u64::from(request.groups);
                range.for_each(|group| note(groups, group));
            }
        }
        let waits = |waiting: &Waiting| waiting.serial == asked.serial;
        let Some(index) = self.waiting.iter().position(waits) else {
            return;
        };
        let waiting = &mut self.waiting[index];
        waiting.left -= 1;
        waiting.failed |= !reply.present;
        if waiting.left > 0 {
            return;
        }
        let Waiting {
            ticket,
            operation,
            failed,
            ..
        } = self.waiting.swap_remove(index);
        if failed {
            let error = io::Error::other("a part of it could not be fetched");
            self.ended.push_back((ticket, Err(error)));
        } else {
            self.startable.push_back((ticket, operation));
        }
    }

    /// Nothing that is missing can be had any more.
    fn lose_agent(&mut self) {
        self.open = false;
        self.unsent.clear();
        self.asked.clear();
        for waiting in self.waiting.drain(..) {
            let error = io::Error::from(io::ErrorKind::NotConnected);
            self.ended.push_back((waiting.ticket, Err(error)));
        }
        if !self.ended.is_empty() {
            self.watch.wake_again();
        }
    }
}

fn has(groups: &[u64], group: u64) -> bool {
    let word = groups.get((group / 64) as usize);
    word.is_some_and(|word| word >> (group % 64) & 1 == 1)
}

fn note(groups: &mut [u64], group: u64) {
    if let Some(word) = groups.get_mut((group / 64) as usize) {
        *word |= 1 << (group % 64);
    }
}

impl BlockBackend for LazyDisk {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn start(&mut self, ticket: Ticket, operation: Operation) -> Option<io::Result<()>> {
        let requests = match &operation {
            Operation::Read(offset, buffers) => self.missing(*offset, buffers.bytes()),
            _ => Vec::new(),
        };
        if requests.is_empty() {
            return self.inner.start(ticket, operation);
        }
        if !self.open {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        for request in &requests {
            let request = *request;
            self.asked.insert(request.id, Asked { request, serial });
            self.unsent.push_back(request);
        }
        self.waiting.push(Waiting {
            serial,
            ticket,
            operation,
            left: requests.len(),
            failed: false,
        });
        self.send();
        None
    }

    fn has_room(&self) -> bool {
        self.asked.len() < MAX_REQUESTS && self.startable.is_empty() && self.inner.has_room()
    }

    fn submit(&mut self) {
        self.inner.submit();
    }

    fn complete(&mut self) -> Option<(Ticket, io::Result<()>)> {
        while self.inner.has_room() {
            let Some((ticket, operation)) = self.startable.pop_front() else {
                break;
            };
            if let Some(result) = self.inner.start(ticket, operation) {
                self.ended.push_back((ticket, result));
            }
        }
        self.ended.pop_front().or_else(|| self.inner.complete())
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn acknowledge(&mut self) {
        let (mut answered, mut completed) = (false, false);
        self.watch.poll(|index, _| match index {
            0 => answered = true,
            _ => completed = true,
        });
        if completed {
            self.inner.acknowledge();
        }
        // Also when it was woken because there is more.
        if self.open {
            self.receive();
            self.send();
        }
    }

    fn wake(&mut self) {
        self.watch.wake_again();
    }

    fn wait(&mut self, patience: Duration) -> bool {
        self.waiting.clear();
        self.startable.clear();
        self.ended.clear();
        // The answers that are still to come say what is there, all the same.
        self.inner.wait(patience)
    }
}

#[cfg(test)]
mod tests;
