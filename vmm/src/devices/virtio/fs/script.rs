//! A vhost-user backend for tests: it keeps to the protocol until it is told not to.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::message::Request;

/// What it does to one request.
pub enum Act {
    /// Never answers, and reads no more.
    Hang,
    /// Closes the connection.
    Close,
    /// Sends these bytes, and goes on.
    Send(Vec<u8>),
    /// Sends a piece of an answer, and closes the connection.
    Break,
    /// Says that it failed; or, where a number was asked for, that it is this.
    Answer(u64),
    /// Attaches a descriptor to the answer.
    Attach(OwnedFd),
    /// Answers when it is let.
    WaitFor(Receiver<()>),
    /// Answers, and says something more.
    Chatter,
}

/// A request that it got.
#[derive(Debug)]
pub struct Got {
    pub request: u32,
    /// The body as numbers of 32 bits.
    pub words: Vec<u32>,
    pub files: Vec<OwnedFd>,
}

/// What a good backend offers: rings of version 1 with event index and indirect
/// descriptors, and features of the protocol.
pub const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
/// MQ, REPLY_ACK, and some that nobody asked for.
const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9;

/// Starts a backend that acts on the `skip`th request of a kind, from 0, as told. What it
/// gets comes over the channel, which ends with it.
pub fn backend(act: Option<(Request, usize, Act)>) -> (OwnedFd, Receiver<Got>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, receiver) = channel();
    // It ends with the connection.
    thread::spawn(move || serve(&theirs, &sender, act));
    (ours.into(), receiver)
}

fn serve(socket: &UnixStream, log: &Sender<Got>, mut act: Option<(Request, usize, Act)>) {
    while let Ok((flags, got)) = receive(socket) {
        let (request, words) = (got.request, got.words.clone());
        // The test may have seen enough.
        let _ = log.send(got);
        let due = match &mut act {
            Some((kind, skip, _)) if *kind as u32 == request => {
                let due = *skip == 0;
                *skip = skip.wrapping_sub(1);
                due
            }
            _ => false,
        };
        let act = if due { act.take() } else { None };
        let mut answer = match request {
            1 => Some(FEATURES),
            15 => Some(PROTOCOL),
            17 => Some(2),
            11 => Some(u64::from(words[0])),
            _ => (flags & 8 != 0).then_some(0),
        };
        let mut attached = None;
        let mut more = false;
        match act.map(|(_, _, act)| act) {
            None => {}
            Some(Act::Close) => return,
            Some(Act::Hang) => {
                // Until the other end is gone.
                let mut socket = socket;
                let mut rest = Vec::new();
                let _ = socket.read_to_end(&mut rest);
                return;
            }
            Some(Act::Send(bytes)) => {
                let mut socket = socket;
                let _ = socket.write_all(&bytes);
                answer = None;
            }
            Some(Act::Break) => {
                let mut socket = socket;
                let _ = socket.write_all(&reply(request, 0)[..10]);
                return;
            }
            Some(Act::Answer(number)) => answer = Some(number),
            Some(Act::Attach(fd)) => attached = Some(fd),
            Some(Act::WaitFor(let_go)) => {
                let _ = let_go.recv();
            }
            Some(Act::Chatter) => more = true,
        }
        if let Some(number) = answer {
            let mut bytes = reply(request, number);
            if more {
                bytes.extend_from_within(..);
            }
            if send(socket, &bytes, attached).is_err() {
                return;
            }
        }
    }
}

/// An answer as it should be.
pub fn reply(request: u32, number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, 5, 8] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(number.to_ne_bytes());
    bytes
}

fn send(socket: &UnixStream, bytes: &[u8], attached: Option<OwnedFd>) -> io::Result<()> {
    let fds: Vec<_> = attached.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Its flags and what it is.
fn receive(socket: &UnixStream) -> io::Result<(u32, Got)> {
    let mut header = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let mut place = [IoSliceMut::new(&mut header)];
    if recvmsg(socket, &mut place, &mut control, flags)?.bytes < 12 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let files = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let [request, flags, size] = words(&header)[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut body = vec![0; size as usize];
    let mut socket = socket;
    socket.read_exact(&mut body)?;
    let words = words(&body);
    Ok((
        flags,
        Got {
            request,
            words,
            files,
        },
    ))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
        .collect()
}

impl Got {
    /// The words as numbers of 64 bits.
    pub fn numbers(&self) -> Vec<u64> {
        self.words
            .chunks_exact(2)
            .map(|pair| u64::from(pair[1]) << 32 | u64::from(pair[0]))
            .collect()
    }

    /// The one descriptor that came with it, as a file.
    pub fn file(&self) -> File {
        assert_eq!(self.files.len(), 1);
        File::from(self.files[0].try_clone().unwrap())
    }
}
