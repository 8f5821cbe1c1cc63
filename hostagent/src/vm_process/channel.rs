//! The connections a guest makes, handed over by its VMM
//! ([`vmm::vsock_channel`]).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use vmm::vsock_channel::{MAX_MESSAGE_BYTES, Message};

/// Why a connection was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("cannot receive a connection from the VMM")]
    Receive(#[source] Errno),
    /// A message that is none, or has not exactly one descriptor.
    #[error("the VMM handed over a connection in a way this version does not understand")]
    Malformed,
}

/// One connection of the guest.
#[derive(Debug)]
pub struct Connection {
    /// The host's port that the guest connected to.
    pub port: u32,
    /// The host's end. Closing it resets the connection.
    pub socket: UnixStream,
}

/// The agent's end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// A new channel, and the end for the VMM.
    pub fn pair() -> rustix::io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { socket: ours }, theirs))
    }

    /// The next connection, without waiting. `None` if there is none, or never
    /// will be because the VMM is gone.
    pub fn receive(&self) -> Result<Option<Connection>, ChannelError> {
        let mut text = [0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) if received.bytes == 0 => return Ok(None),
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(ChannelError::Receive(errno)),
        };
        let mut descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let socket = descriptors.next().ok_or(ChannelError::Malformed)?;
        let message: Message =
            serde_json::from_slice(&text[..received.bytes]).map_err(|_| ChannelError::Malformed)?;
        Ok(Some(Connection {
            port: message.port,
            socket: socket.into(),
        }))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    fn send(to: &OwnedFd, text: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let sent =
            rustix::net::sendmsg(to, &[IoSlice::new(text)], &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(text.len()));
    }

    #[test]
    fn a_connection_arrives_with_its_port_and_works() {
        let (channel, vmm) = Channel::pair().unwrap();
        assert!(channel.receive().unwrap().is_none());
        let (mut theirs, given) = UnixStream::pair().unwrap();
        send(&vmm, b"{\"port\":1026}", &[given.as_fd()]);
        drop(given);
        let mut connection = channel.receive().unwrap().unwrap();
        assert_eq!(connection.port, 1026);
        connection.socket.write_all(b"hello").unwrap();
        drop(connection);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_message_without_a_descriptor_or_a_port_is_refused() {
        let (channel, vmm) = Channel::pair().unwrap();
        let (_theirs, given) = UnixStream::pair().unwrap();
        send(&vmm, b"{\"port\":1}", &[]);
        assert!(matches!(channel.receive(), Err(ChannelError::Malformed)));
        for text in [
            &b"{\"port\":-1}"[..],
            b"{}",
            b"\xff",
            b"{\"port\":1,\"x\":2}",
        ] {
            send(&vmm, text, &[given.as_fd()]);
            assert!(matches!(channel.receive(), Err(ChannelError::Malformed)));
        }
        // One descriptor too many is closed, not kept.
        send(&vmm, b"{\"port\":1}", &[given.as_fd(), given.as_fd()]);
        assert!(channel.receive().is_ok());
    }

    #[test]
    fn a_vmm_that_is_gone_hands_over_nothing() {
        let (channel, vmm) = Channel::pair().unwrap();
        drop(vmm);
        assert!(channel.receive().unwrap().is_none());
    }
}
