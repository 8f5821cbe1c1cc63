//! All connections of a guest, and the descriptor that says one has something.
//!
//! Streams are watched edge-triggered in an epoll of the muxer's own, which the
//! event loop watches in turn. A connection with something for the guest waits
//! in `waiting` for a buffer, each at most once, and goes to the back after
//! every packet, so that none keeps the others from the guest.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::channel::{Channel, Received};
use super::connection::{Connection, Violation};
use super::packet::{Header, Operation, TYPE_STREAM};

/// `VMADDR_CID_HOST` (vsock(7)).
const HOST_CID: u64 = 2;

/// Connections at one time. Each may hold [`super::connection::BUFFER_BYTES`]
/// of memory and two descriptors for a while.
const MAX_CONNECTIONS: usize = 256;

/// Resets that wait for the guest to take them.
const MAX_RESETS: usize = 256;

/// Host ports of connections that the agent makes count up from here; below
/// are the ports that the agent listens on.
const FIRST_EPHEMERAL_PORT: u32 = 1 << 30;

/// Events taken from the kernel in one go.
const EVENTS_A_CALL: usize = 32;

/// Messages taken from the agent in one go.
const MESSAGES_A_CALL: usize = 32;

const CHANNEL_EVENT: u64 = u64::MAX;
const AGAIN_EVENT: u64 = u64::MAX - 1;

/// A connection's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    guest: u32,
    host: u32,
}

impl Ports {
    /// Two ports are 64 bits; the two values used otherwise would need a host
    /// port of all ones, which [`Muxer::connect_guest`] and `take` never allow.
    fn event_data(self) -> u64 {
        u64::from(self.host) << 32 | u64::from(self.guest)
    }

    fn from_event_data(data: u64) -> Self {
        Self {
            guest: data as u32,
            host: (data >> 32) as u32,
        }
    }
}

struct Entry {
    connection: Connection,
    /// Whether its ports are in `waiting`.
    waiting: bool,
}

/// The connections.
pub struct Muxer {
    guest_cid: u64,
    channel: Channel,
    epoll: Epoll,
    again: EventFd,
    connections: BTreeMap<Ports, Entry>,
    waiting: VecDeque<Ports>,
    resets: VecDeque<Ports>,
    next_ephemeral_port: u32,
}

impl Muxer {
    /// No connections yet.
    pub fn new(guest_cid: u64, channel: OwnedFd) -> io::Result<Self> {
        let channel = Channel::new(channel);
        let epoll = Epoll::new()?;
        let again = EventFd::new(EFD_NONBLOCK)?;
        let channel_fd = channel.as_fd().as_raw_fd();
        watch(&epoll, channel_fd, EventSet::IN, CHANNEL_EVENT)?;
        watch(&epoll, again.as_raw_fd(), EventSet::IN, AGAIN_EVENT)?;
        Ok(Self {
            guest_cid,
            channel,
            epoll,
            again,
            connections: BTreeMap::new(),
            waiting: VecDeque::new(),
            resets: VecDeque::new(),
            next_ephemeral_port: FIRST_EPHEMERAL_PORT,
        })
    }

    /// Forgets all connections; the agent reads their end.
    pub fn reset(&mut self) {
        self.connections.clear();
        self.waiting.clear();
        self.resets.clear();
    }

    /// Makes [`Muxer::as_fd`] ready once more.
    pub fn wake_again(&self) {
        let _ = self.again.write(1);
    }

    /// Whether the guest must take packets before it may send more.
    pub fn answers_full(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Whether there may be something for the guest.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.waiting.is_empty()
    }

    /// Looks at what is ready, without waiting. Without a driver (`active` is
    /// false) the agent's connections are refused by closing them.
    pub fn poll(&mut self, active: bool) {
        let mut events = [EpollEvent::default(); EVENTS_A_CALL];
        // Only a signal makes this fail; the descriptor stays ready.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                CHANNEL_EVENT => self.take_messages(active),
                AGAIN_EVENT => {
                    let _ = self.again.read();
                }
                data => self.stream_ready(Ports::from_event_data(data), event.event_set()),
            }
        }
    }

    fn take_messages(&mut self, active: bool) {
        for _ in 0..MESSAGES_A_CALL {
            match self.channel.receive() {
                Received::Connect(port, stream) if active => self.connect_guest(port, stream),
                Received::Connect(..) | Received::Malformed => {}
                Received::Nothing => return,
                Received::Closed => {
                    let (delete, channel) = (ControlOperation::Delete, self.channel.as_fd());
                    let _ = self
                        .epoll
                        .ctl(delete, channel.as_raw_fd(), EpollEvent::default());
                    return;
                }
            }
        }
    }

    fn connect_guest(&mut self, guest: u32, stream: UnixStream) {
        // Ports are reused only after 2³⁰ connections; one still open then is
        // skipped over by refusing the new one.
        let host = self.next_ephemeral_port;
        self.next_ephemeral_port = match host.checked_add(1) {
            Some(next) if next < u32::MAX => next,
            _ => FIRST_EPHEMERAL_PORT,
        };
        self.insert(Ports { guest, host }, Connection::from_agent(stream));
    }

    /// Keeps a new connection, if there is room, and says whether it did.
    fn insert(&mut self, ports: Ports, connection: Connection) -> bool {
        if self.connections.len() >= MAX_CONNECTIONS || self.connections.contains_key(&ports) {
            return false;
        }
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let stream = connection.stream();
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| watch(&self.epoll, stream.as_raw_fd(), events, ports.event_data()));
        if watched.is_err() {
            return false;
        }
        let entry = Entry {
            connection,
            waiting: false,
        };
        self.connections.insert(ports, entry);
        self.wait_if_needed(ports);
        true
    }

    fn stream_ready(&mut self, ports: Ports, flags: EventSet) {
        let Some(entry) = self.connections.get_mut(&ports) else {
            return;
        };
        if flags
            .intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR)
        {
            entry.connection.set_readable();
        }
        let result = entry.connection.flush();
        self.settle(ports, result);
    }

    /// After anything that may have changed a connection.
    fn settle(&mut self, ports: Ports, result: Result<(), Violation>) {
        let over = result.is_err()
            || self
                .connections
                .get(&ports)
                .is_some_and(|entry| entry.connection.finished());
        if over {
            self.forget(ports);
            self.refuse(ports);
        } else {
            self.wait_if_needed(ports);
        }
    }

    /// Lets go of a connection, and of its place in the line: the guest may make and end
    /// as many as it likes without ever taking a packet.
    fn forget(&mut self, ports: Ports) {
        let entry = self.connections.remove(&ports);
        if entry.is_some_and(|entry| entry.waiting) {
            self.waiting.retain(|waiting| *waiting != ports);
        }
    }

    fn wait_if_needed(&mut self, ports: Ports) {
        if let Some(entry) = self.connections.get_mut(&ports)
            && !entry.waiting
            && entry.connection.has_packet()
        {
            entry.waiting = true;
            self.waiting.push_back(ports);
        }
    }

    /// Owes the guest a reset. Past the bound one is lost: `answers_full` keeps
    /// the guest from causing that, and each connection causes one at most.
    fn refuse(&mut self, ports: Ports) {
        if self.resets.len() < MAX_RESETS + MAX_CONNECTIONS {
            self.resets.push_back(ports);
        }
    }

    /// Takes a packet of the guest's.
    pub fn take(&mut self, header: Header, data: Option<&VolatileSlice>) {
        let ports = Ports {
            guest: header.source_port,
            host: header.destination_port,
        };
        // A packet that claims another sender, or is for nobody here, is none of
        // ours; answering would invite it to flood.
        if header.source_cid != self.guest_cid || header.destination_cid != HOST_CID {
            return;
        }
        let operation = match header.operation {
            Some(operation) if header.socket_type == TYPE_STREAM => operation,
            // Section 5.10.6.4: what is not understood is answered with a reset.
            _ => {
                self.refuse(ports);
                return;
            }
        };
        match self.connections.get_mut(&ports) {
            Some(_) if operation == Operation::Reset => self.forget(ports),
            Some(entry) => {
                let result = entry.connection.take(&header, operation, data);
                self.settle(ports, result);
            }
            None if operation == Operation::Request => {
                if !self.accept(ports, &header) {
                    self.refuse(ports);
                }
            }
            None if operation == Operation::Reset => {}
            None => self.refuse(ports),
        }
    }

    /// Hands the agent a connection the guest asks for.
    fn accept(&mut self, ports: Ports, request: &Header) -> bool {
        if ports.host == u32::MAX || self.connections.len() >= MAX_CONNECTIONS {
            return false;
        }
        let Ok((ours, theirs)) = UnixStream::pair() else {
            return false;
        };
        self.channel.offer(ports.host, &theirs).is_ok()
            && self.insert(ports, Connection::from_guest(ours, request))
    }

    /// The next packet for the guest, its payload already in `room`, which must
    /// not be empty.
    pub fn next_packet(&mut self, room: &VolatileSlice) -> Option<Header> {
        if let Some(ports) = self.resets.pop_front() {
            return Some(self.header(ports, Operation::Reset, 0, 0, (0, 0)));
        }
        // Bounded: each turn takes one out of the line, and puts it back only
        // together with a packet.
        while let Some(ports) = self.waiting.pop_front() {
            let Some(entry) = self.connections.get_mut(&ports) else {
                continue;
            };
            entry.waiting = false;
            let result = entry.connection.next_packet(room);
            let packet = match result {
                Ok(Some(packet)) => packet,
                // Only a stream that had nothing after all; it tells when it has.
                Ok(None) => continue,
                Err(violation) => {
                    self.settle(ports, Err(violation));
                    return self
                        .resets
                        .pop_front()
                        .map(|ports| self.header(ports, Operation::Reset, 0, 0, (0, 0)));
                }
            };
            let credit = entry.connection.tell_credit();
            self.wait_if_needed(ports);
            let (operation, flags, length) = packet;
            return Some(self.header(ports, operation, flags, length, credit));
        }
        None
    }

    fn header(
        &self,
        ports: Ports,
        operation: Operation,
        flags: u32,
        length: u32,
        (buffer_bytes, forwarded_bytes): (u32, u32),
    ) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: ports.host,
            destination_port: ports.guest,
            length,
            socket_type: TYPE_STREAM,
            operation: Some(operation),
            flags,
            buffer_bytes,
            forwarded_bytes,
        }
    }
}

impl AsFd for Muxer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the epoll descriptor is open for as long as this muxer lives.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, events: EventSet, data: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))
}

#[cfg(test)]
mod tests;
