//! The VMM's end of [`crate::vsock_channel`].

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::vsock_channel::{MAX_MESSAGE_BYTES, Message};

/// The socket to the agent.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What came over the channel.
#[derive(Debug)]
pub enum Received {
    /// A connection the agent wants to make to a port of the guest.
    Connect(u32, UnixStream),
    /// Something that is no message; it was dropped.
    Malformed,
    /// Nothing more for now.
    Nothing,
    /// The agent is gone.
    Closed,
}

impl Channel {
    /// Takes over a connected `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Hands the agent the host end of a connection the guest made to `port`.
    /// Never waits: an agent that does not read refuses the guest.
    pub fn offer(&self, port: u32, stream: &UnixStream) -> io::Result<()> {
        let message = serde_json::to_vec(&Message { port })?;
        let fds = [stream.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(
            &self.0,
            &[IoSlice::new(&message)],
            &mut control,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Takes one message, if there is one.
    pub fn receive(&self) -> Received {
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        // Room for more than one descriptor, so that a second one is received
        // and closed instead of making the kernel cut the list.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let result = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        );
        let length = match result {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::AGAIN) => return Received::Nothing,
            Err(rustix::io::Errno::INTR) => return Received::Malformed,
            Err(_) => return Received::Closed,
        };
        let mut streams: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if length == 0 && streams.is_empty() {
            return Received::Closed;
        }
        let message = serde_json::from_slice::<Message>(&bytes[..length]);
        match (message, streams.pop(), streams.is_empty()) {
            (Ok(message), Some(stream), true) => Received::Connect(message.port, stream.into()),
            _ => Received::Malformed,
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
