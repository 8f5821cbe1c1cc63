//! The agent's end of the vsock channel.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vmm::vsock_channel::{MAX_MESSAGE_BYTES, Message};

/// A guest that has said nothing by then never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves the guest's connections and makes its own.
pub struct Agent {
    channel: OwnedFd,
}

impl Agent {
    pub fn new(channel: OwnedFd) -> Self {
        let patience = Some(PATIENCE);
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&channel, timeout, patience).unwrap();
        Self { channel }
    }

    /// Waits for a connection of the guest's: the port, and the stream.
    #[track_caller]
    pub fn accept(&mut self) -> (u32, UnixStream) {
        self.next().unwrap()
    }

    /// Accepts whatever comes, and reads nothing, until the microVM is gone.
    pub fn accept_all(mut self) {
        std::thread::spawn(move || {
            let mut streams = Vec::new();
            while let Some(accepted) = self.next() {
                streams.push(accepted);
            }
        });
    }

    /// Closes whatever comes, until the microVM is gone.
    pub fn refuse_all(mut self) {
        std::thread::spawn(move || while self.next().is_some() {});
    }

    /// `None`: the microVM is gone.
    fn next(&mut self) -> Option<(u32, UnixStream)> {
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.channel, buffers, &mut control, flags).ok()?;
        if received.bytes == 0 {
            return None;
        }
        let message: Message = serde_json::from_slice(&bytes[..received.bytes]).unwrap();
        let mut streams = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        Some((message.port, patient(streams.next().unwrap().into())))
    }

    /// Asks for a connection to the guest's `port`.
    pub fn connect(&mut self, port: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let message = serde_json::to_vec(&Message { port }).unwrap();
        self.send(&message, &[&theirs]);
        patient(ours)
    }

    /// Sends anything.
    pub fn send(&mut self, bytes: &[u8], streams: &[&UnixStream]) {
        let fds: Vec<_> = streams.iter().map(|stream| stream.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let buffers = [IoSlice::new(bytes)];
        sendmsg(&self.channel, &buffers, &mut control, SendFlags::empty()).unwrap();
    }
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}
