//! The socket to the agent: one request in at a time, replies out.
//!
//! Nothing here waits, and what is kept is bounded: while a reply waits for the
//! agent to read, no request is taken.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use event_manager::{EventOps, EventSet, Events};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};
use serde::Deserialize;

use super::{CONTROL_VERSION, MAX_REQUEST_BYTES, Outcome, Reply, Request};

/// What the other end of a socket has closed, by the events that tell of it.
const WRITING_CLOSED: EventSet = EventSet::READ_HANG_UP;
const ALL_CLOSED: EventSet = EventSet::HANG_UP.union(EventSet::ERROR);

/// A message that is no request: its id, if it has one, and what is wrong.
pub type Malformed = (Option<u64>, String);

/// The VMM's end of the control socket.
pub struct Connection {
    socket: OwnedFd,
    /// What the event loop calls it by.
    event_data: u32,
    replies: VecDeque<Vec<u8>>,
    /// Whether there may be more requests.
    listening: bool,
    /// Whether the agent has closed its end with replies unread.
    was_reset: bool,
    /// What the event loop watches it for; `None` if it no longer does.
    watched: Option<EventSet>,
}

impl Connection {
    /// Takes over a connected `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd, event_data: u32) -> Self {
        Self {
            socket,
            event_data,
            replies: VecDeque::new(),
            listening: true,
            was_reset: false,
            watched: None,
        }
    }

    /// Begins to watch for requests.
    pub fn register(&mut self, ops: &mut EventOps) {
        let wanted = EventSet::IN | WRITING_CLOSED;
        let events = Events::with_data(&self.socket, self.event_data, wanted);
        // Registered once; epoll has no other objection.
        if ops.add(events).is_ok() {
            self.watched = Some(wanted);
        }
    }

    /// The socket is ready, as `ready` says: sends what waits, takes one message if
    /// there is one and its reply would be read.
    pub fn turn(&mut self, ready: EventSet) -> Option<Result<Request, Malformed>> {
        self.send();
        if !self.replies.is_empty() || !self.listening {
            return None;
        }
        let mut bytes = [0; MAX_REQUEST_BYTES];
        // The length is that of the packet, of which no more than fits is copied.
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let mut no_descriptors = RecvAncillaryBuffer::default();
        let received = recvmsg(&self.socket, &mut pieces, &mut no_descriptors, flags);
        let length = match received {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            // An agent that closes its end with replies unread is told of once, ahead of
            // the requests it had sent (unix(7) does not say so; `unix_release_sock`
            // sets the error of the other end). They are still to come.
            Err(Errno::CONNRESET) if !self.was_reset => {
                self.was_reset = true;
                return None;
            }
            Err(_) => {
                self.listening = false;
                return None;
            }
        };
        // The end reads as an empty packet does.
        if length == 0 && ready.intersects(WRITING_CLOSED | ALL_CLOSED) {
            self.listening = false;
            return None;
        }
        Some(match bytes.get(..length) {
            Some(message) => parse(message),
            None => {
                let reason = format!(
                    "the message has {length} bytes; at most {MAX_REQUEST_BYTES} are taken"
                );
                Err((None, reason))
            }
        })
    }

    /// Sends a reply, or keeps it until the agent has room.
    pub fn reply(&mut self, id: Option<u64>, outcome: Outcome) {
        let reply = Reply {
            version: CONTROL_VERSION,
            id,
            outcome,
        };
        // Serializing what has neither maps nor foreign types does not fail.
        if let Ok(packet) = serde_json::to_vec(&reply) {
            self.replies.push_back(packet);
        }
        self.send();
    }

    fn send(&mut self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while let Some(packet) = self.replies.front() {
            let pieces = [IoSlice::new(packet)];
            let mut no_descriptors = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &pieces, &mut no_descriptors, flags) {
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                // Sent, or there is nobody to read it.
                _ => {
                    self.replies.pop_front();
                }
            }
        }
    }

    /// Watches for what is waited for now: room for replies, or requests. To be
    /// called after each event, with what the socket was ready for.
    pub fn watch(&mut self, ready: EventSet, ops: &mut EventOps) {
        let Some(watched) = self.watched else { return };
        if ready.intersects(ALL_CLOSED) && !self.listening {
            // It would be ready for ever.
            let _ = ops.remove(Events::empty(&self.socket));
            self.watched = None;
            return;
        }
        let wanted = if !self.replies.is_empty() {
            EventSet::OUT
        } else if self.listening {
            EventSet::IN | WRITING_CLOSED
        } else {
            EventSet::empty()
        };
        let events = Events::with_data(&self.socket, self.event_data, wanted);
        if wanted != watched && ops.modify(events).is_ok() {
            self.watched = Some(wanted);
        }
    }
}

/// The request in `message`.
pub fn parse(message: &[u8]) -> Result<Request, Malformed> {
    /// What every version of the protocol has.
    #[derive(Deserialize)]
    struct Head {
        version: Option<u32>,
        id: Option<u64>,
    }
    let malformed = |error: serde_json::Error| format!("the message is no request: {error}");
    let head: Head = serde_json::from_slice(message).map_err(|error| (None, malformed(error)))?;
    match head.version {
        Some(version) if version != CONTROL_VERSION => {
            let reason =
                format!("version is {version}, this mote-vmm understands {CONTROL_VERSION}");
            Err((head.id, reason))
        }
        _ => serde_json::from_slice(message).map_err(|error| (head.id, malformed(error))),
    }
}
