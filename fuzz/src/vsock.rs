//! The agent's side of a vsock device, and packets of a guest.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use vmm::devices::virtio::vsock::packet::{Header, Operation};

/// The guest's context id.
pub const GUEST: u64 = 3;
/// Streams that the agent keeps; older ones it closes.
const MAX_STREAMS: usize = 8;

/// The agent.
pub struct Agent {
    channel: Option<OwnedFd>,
    streams: VecDeque<UnixStream>,
}

impl Agent {
    /// An agent, and the device's end of its channel.
    pub fn new() -> (Self, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
        let agent = Self {
            channel: Some(ours),
            streams: VecDeque::new(),
        };
        (agent, theirs)
    }

    /// Does one thing.
    pub fn act(&mut self, u: &mut Unstructured) -> Result<()> {
        match u.int_in_range(0..=15)? {
            0..=4 => self.accept(),
            5..=7 => self.connect(u.int_in_range(0..=3)?),
            8..=9 => {
                let length = u.int_in_range(0..=2000)?;
                self.with_stream(u, |mut stream| drop(stream.write(&vec![7; length])))?;
            }
            10..=11 => self.with_stream(u, |mut stream| drop(stream.read(&mut [0; 4096])))?,
            12 => {
                let how = *u.choose(&[Shutdown::Read, Shutdown::Write, Shutdown::Both])?;
                self.with_stream(u, |stream| drop(stream.shutdown(how)))?;
            }
            13 => drop(self.streams.pop_front()),
            14 => {
                let message = u.bytes(u.len().min(40))?;
                self.send(message, &[]);
            }
            _ if u.ratio(1, 8)? => self.channel = None,
            _ => self.accept(),
        }
        Ok(())
    }

    fn with_stream(&mut self, u: &mut Unstructured, act: impl FnOnce(&UnixStream)) -> Result<()> {
        let index = u.int_in_range(0..=MAX_STREAMS - 1)?;
        if let Some(stream) = self.streams.get(index) {
            act(stream);
        }
        Ok(())
    }

    fn keep(&mut self, stream: UnixStream) {
        if self.streams.len() == MAX_STREAMS {
            self.streams.pop_front();
        }
        // A stream in blocking mode would wait for ever.
        stream.set_nonblocking(true).expect("a socket");
        self.streams.push_back(stream);
    }

    fn accept(&mut self) {
        let Some(channel) = &self.channel else { return };
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        if recvmsg(channel, buffers, &mut control, RecvFlags::DONTWAIT).is_err() {
            return;
        }
        let received: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(received.len(), 1, "an offer comes with its stream");
        for fd in received {
            self.keep(fd.into());
        }
    }

    fn connect(&mut self, port: u32) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        self.send(format!("{{\"port\":{port}}}").as_bytes(), &[theirs.as_fd()]);
        self.keep(ours);
    }

    fn send(&self, message: &[u8], fds: &[std::os::fd::BorrowedFd]) {
        let Some(channel) = &self.channel else { return };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        // Refused when the device does not read.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = sendmsg(channel, &[IoSlice::new(message)], &mut control, flags);
    }
}

/// A packet's header: mostly of this guest, between few ports.
pub fn header(u: &mut Unstructured) -> Result<Header> {
    let (source_cid, destination_cid) = match u.int_in_range(0..=15)? {
        0 => (u.arbitrary()?, u.arbitrary()?),
        _ => (GUEST, 2),
    };
    let port = |u: &mut Unstructured, first: u32| match u.int_in_range(0..=15)? {
        0 => u.arbitrary::<u32>(),
        // Those of connections that the agent makes.
        1..=5 => Ok((1_u32 << 30) + u.int_in_range(0..=3)?),
        _ => Ok(first + u.int_in_range(0..=3)?),
    };
    Ok(Header {
        source_cid,
        destination_cid,
        source_port: port(u, 0)?,
        destination_port: port(u, 1024)?,
        length: 0,
        socket_type: if u.ratio(1, 16)? { u.arbitrary()? } else { 1 },
        operation: match u.int_in_range(0..=9)? {
            1 => Some(Operation::Response),
            2 => Some(Operation::Reset),
            3 => Some(Operation::Shutdown),
            4..=5 => Some(Operation::ReadWrite),
            6 => Some(Operation::CreditUpdate),
            7 => Some(Operation::CreditRequest),
            8 => None,
            _ => Some(Operation::Request),
        },
        flags: if u.ratio(1, 16)? {
            u.arbitrary()?
        } else {
            u.int_in_range(0..=3)?
        },
        buffer_bytes: if u.ratio(1, 4)? { u.arbitrary()? } else { 4096 },
        forwarded_bytes: if u.ratio(1, 4)? { u.arbitrary()? } else { 0 },
    })
}
