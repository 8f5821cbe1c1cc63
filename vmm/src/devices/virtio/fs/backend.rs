//! The connection to a vhost-user backend, and what it was told.
//!
//! A backend is trusted with guest memory, and with nothing else: it may die, hang, or
//! answer what and when it likes. Each wait has an end, and what is not the answer that
//! is due ends the connection. (The front end of the crate `vhost` waits for ever: it
//! tries again when the time that its socket allows for an answer is over.)
//!
//! Addresses are told as the guest's own: the backend need not know where memory is in
//! this process.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::QUEUES;
use super::message::{Message, PROTOCOL_FEATURES, REPLY_BYTES, Request, protocol, reply_to};
use crate::memory::GuestMemory;

/// How long a backend may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until it has guest memory. The guest has not started yet.
    pub handshake: Duration,
    /// Until it serves the queues. Only their driver waits.
    pub start: Duration,
    /// Until it is done with the requests that it has begun. A vCPU waits, and whoever
    /// wants to know something of the device.
    pub stop: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            start: Duration::from_secs(5),
            stop: Duration::from_secs(2),
        }
    }
}

/// How long one wait for the socket lasts; then the clock is looked at.
const SOCKET_WAIT: Duration = Duration::from_millis(100);

/// What must be the same on both sides of a ring.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What is wrong with a backend. None of it can be mended: the connection is over.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// End of file: mostly, its process has ended.
    #[error("the vhost-user backend has closed the connection")]
    Closed,
    /// It hangs, or it is very slow.
    #[error("the vhost-user backend has not answered {request} in time")]
    Late {
        /// What it was asked.
        request: Request,
    },
    /// It does not read what it is sent.
    #[error("the vhost-user backend does not take {request}")]
    Deaf {
        /// What it was to be sent.
        request: Request,
    },
    /// It speaks another protocol, or out of turn.
    #[error("the vhost-user backend has sent what is no answer")]
    Nonsense,
    /// It says that it failed.
    #[error("the vhost-user backend has refused {request}")]
    Refused {
        /// What it was asked.
        request: Request,
    },
    /// It cannot do what is needed here.
    #[error("the vhost-user backend does not offer {what}")]
    Missing {
        /// What is needed.
        what: &'static str,
    },
    /// Guest memory is this process's alone: a defect of the program.
    #[error("guest memory cannot be given to a vhost-user backend")]
    PrivateMemory,
    /// The socket failed.
    #[error("the socket of the vhost-user backend failed")]
    Socket(#[source] io::Error),
}

/// Where the driver has a queue, in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// How many descriptors it has.
    pub size: u16,
    /// The address of its descriptors.
    pub descriptors: u64,
    /// Of the driver area.
    pub available: u64,
    /// Of the device area.
    pub used: u64,
}

/// What the driver and the backend tell each other by.
#[derive(Debug)]
pub struct Lines {
    /// Raised for used buffers.
    pub interrupt: EventFd,
    /// What the driver rings, one for each queue.
    pub doorbells: Vec<EventFd>,
}

/// A backend that has guest memory. Which queues it serves, the caller knows.
#[derive(Debug)]
pub struct Backend {
    socket: OwnedFd,
    /// What it owes answers to, in order. Bounded by what is asked at once.
    due: VecDeque<Request>,
    incoming: [u8; REPLY_BYTES],
    received: usize,
    /// The last answer to a request for a number.
    answer: u64,
    patience: Patience,
}

/// The most requests that are sent before an answer is waited for: the features, seven
/// messages for each queue, one more to stop it.
const MOST_DUE: usize = 1 + 8 * QUEUES;

impl Backend {
    /// Agrees with the backend behind `socket` and gives it `memory`.
    pub fn new(
        socket: OwnedFd,
        memory: &GuestMemory,
        patience: Patience,
    ) -> Result<Self, BackendError> {
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(SOCKET_WAIT))
                .map_err(|errno| BackendError::Socket(errno.into()))?;
        }
        let mut backend = Self {
            socket,
            due: VecDeque::with_capacity(MOST_DUE),
            incoming: [0; REPLY_BYTES],
            received: 0,
            answer: 0,
            patience,
        };
        let end = Instant::now() + patience.handshake;
        backend.agree(end)?;
        backend.give(memory, end)?;
        Ok(backend)
    }

    fn agree(&mut self, end: Instant) -> Result<(), BackendError> {
        let offered = self.ask(Request::GetFeatures, end)?;
        for (bits, what) in [
            (PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES"),
            (1 << VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"),
            (
                RING_FEATURES,
                "VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC",
            ),
        ] {
            if offered & bits != bits {
                return Err(BackendError::Missing { what });
            }
        }
        let known = self.ask(Request::GetProtocolFeatures, end)?;
        if known & protocol::REPLY_ACK == 0 {
            let what = "VHOST_USER_PROTOCOL_F_REPLY_ACK";
            return Err(BackendError::Missing { what });
        }
        let wanted = known & (protocol::REPLY_ACK | protocol::MQ);
        let request = Request::SetProtocolFeatures;
        self.send(request, &Message::with_number(request, wanted), &[])?;
        if wanted & protocol::MQ != 0 {
            let queues = self.ask(Request::GetQueueNum, end)?;
            if queues < QUEUES as u64 {
                let what = "two queues";
                return Err(BackendError::Missing { what });
            }
        }
        let request = Request::SetOwner;
        self.send(request, &Message::new(request), &[])
    }

    fn give(&mut self, memory: &GuestMemory, end: Instant) -> Result<(), BackendError> {
        let mut table = Message::of_queue(Request::SetMemTable, memory.num_regions() as u32, 0);
        let mut files = Vec::new();
        for region in memory.iter() {
            let file = region.file_offset().ok_or(BackendError::PrivateMemory)?;
            let start = region.start_addr().raw_value();
            // In the guest, how long, in this process, in the file.
            for number in [start, region.len(), start, file.start()] {
                table = table.number(number);
            }
            files.push(file.file().as_fd());
        }
        self.request(Request::SetMemTable, table.acknowledged(), &files)?;
        self.wait(end)
    }

    /// Sends all that it takes to serve `rings`, each at the index of its queue. The
    /// answers are due: [`Backend::receive`] takes them.
    pub fn start(
        &mut self,
        features: u64,
        rings: &[Option<Ring>; QUEUES],
        lines: &Lines,
    ) -> Result<(), BackendError> {
        let features = features & RING_FEATURES | PROTOCOL_FEATURES;
        let message = Message::with_number(Request::SetFeatures, features);
        self.request(Request::SetFeatures, message.acknowledged(), &[])?;
        for ((ring, doorbell), index) in rings.iter().zip(&lines.doorbells).zip(0..) {
            if let Some(ring) = ring {
                self.start_ring(index, ring, &lines.interrupt, doorbell)?;
            }
        }
        Ok(())
    }

    fn start_ring(
        &mut self,
        index: u32,
        ring: &Ring,
        interrupt: &EventFd,
        doorbell: &EventFd,
    ) -> Result<(), BackendError> {
        let mut tell = |request, number| {
            let message = Message::of_queue(request, index, number);
            self.request(request, message.acknowledged(), &[])
        };
        tell(Request::SetVringNum, ring.size.into())?;
        tell(Request::SetVringBase, 0)?;
        // No flags; the last address is that of a log, which there is none of.
        let addresses = [ring.descriptors, ring.used, ring.available, 0];
        let addresses = addresses.into_iter().fold(
            Message::of_queue(Request::SetVringAddr, index, 0),
            Message::number,
        );
        self.request(Request::SetVringAddr, addresses.acknowledged(), &[])?;
        for (request, event) in [
            (Request::SetVringCall, interrupt),
            (Request::SetVringKick, doorbell),
        ] {
            // SAFETY: `event` is open and outlives the borrow.
            let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
            let message = Message::with_number(request, index.into());
            self.request(request, message.acknowledged(), &[fd])?;
        }
        let message = Message::of_queue(Request::SetVringEnable, index, 1);
        self.request(Request::SetVringEnable, message.acknowledged(), &[])
    }

    /// Takes the queues back at which `started` is true, and waits until the backend
    /// touches them no more. For a vCPU: by read(2) and write(2) only.
    pub fn stop(&mut self, started: [bool; QUEUES]) -> Result<(), BackendError> {
        let end = Instant::now() + self.patience.stop;
        for (started, index) in started.into_iter().zip(0..) {
            if started {
                let request = Request::GetVringBase;
                let message = Message::of_queue(request, index, 0);
                match rustix::io::write(&self.socket, message.as_bytes()) {
                    Ok(sent) if sent == message.as_bytes().len() => self.due.push_back(request),
                    Ok(_) => return Err(BackendError::Deaf { request }),
                    Err(errno) => return Err(not_sent(errno, request)),
                }
            }
        }
        self.wait(end)
    }

    /// Takes the answers that have come, without waiting. Returns whether all have.
    pub fn receive(&mut self) -> Result<bool, BackendError> {
        loop {
            let room = &mut self.incoming[self.received..];
            // Without room for descriptors: those that come are closed by the kernel.
            let mut control = RecvAncillaryBuffer::default();
            let result = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(room)],
                &mut control,
                RecvFlags::DONTWAIT,
            );
            match result {
                Ok(message) => self.took(message.bytes)?,
                Err(Errno::AGAIN) => return Ok(self.due.is_empty()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Asks for a number.
    fn ask(&mut self, request: Request, end: Instant) -> Result<u64, BackendError> {
        self.request(request, Message::new(request), &[])?;
        self.wait(end)?;
        Ok(self.answer)
    }

    /// Sends a request that is answered.
    fn request(
        &mut self,
        request: Request,
        message: Message,
        fds: &[BorrowedFd],
    ) -> Result<(), BackendError> {
        self.send(request, &message, fds)?;
        self.due.push_back(request);
        Ok(())
    }

    /// Never waits: a backend that is not told at once has not read for long.
    fn send(
        &self,
        request: Request,
        message: &Message,
        fds: &[BorrowedFd],
    ) -> Result<(), BackendError> {
        // A region of memory each.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = message.as_bytes();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(BackendError::Deaf { request }),
            Err(errno) => Err(not_sent(errno, request)),
        }
    }

    /// How long it may take.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// The error of a backend that has had time enough, if an answer is due.
    pub fn late(&self) -> Option<BackendError> {
        let request = self.due.front().copied()?;
        Some(BackendError::Late { request })
    }

    /// Waits until nothing is due.
    fn wait(&mut self, end: Instant) -> Result<(), BackendError> {
        while let Some(request) = self.due.front().copied() {
            if Instant::now() >= end {
                return Err(BackendError::Late { request });
            }
            // No longer than SOCKET_WAIT.
            match rustix::io::read(&self.socket, &mut self.incoming[self.received..]) {
                Ok(count) => self.took(count)?,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }

    /// Looks at `count` bytes more of what is due.
    fn took(&mut self, count: usize) -> Result<(), BackendError> {
        if count == 0 {
            return Err(BackendError::Closed);
        }
        let Some(request) = self.due.front().copied() else {
            return Err(BackendError::Nonsense);
        };
        self.received += count;
        if self.received < REPLY_BYTES {
            return Ok(());
        }
        self.received = 0;
        self.due.pop_front();
        self.answer = reply_to(request, &self.incoming).ok_or(BackendError::Nonsense)?;
        let refused = request.is_acknowledged() && self.answer != 0;
        match refused {
            true => Err(BackendError::Refused { request }),
            false => Ok(()),
        }
    }
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn not_sent(errno: Errno, request: Request) -> BackendError {
    match errno {
        Errno::AGAIN | Errno::INTR => BackendError::Deaf { request },
        errno => failed(errno),
    }
}

fn failed(errno: Errno) -> BackendError {
    match errno {
        Errno::PIPE | Errno::CONNRESET => BackendError::Closed,
        errno => BackendError::Socket(errno.into()),
    }
}
