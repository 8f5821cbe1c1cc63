//! Who asks.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use vmm::control::{MAX_REPLY_BYTES, Outcome};

use super::{Place, Verb};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("cannot reach the mote that runs the microVM; has it just ended?")]
    Connect(#[source] io::Error),
    /// No answer.
    #[error("the mote that runs the microVM does not answer")]
    Answer(#[source] io::Error),
    /// It, or the VMM, said why not.
    #[error("{0}")]
    Refused(String),
}

/// Asks for `verb` and waits up to `patience` for it to be done.
pub fn ask(place: &Place, verb: &Verb, patience: Duration) -> Result<(), AskError> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| AskError::Connect(errno.into()))?;
    place
        .with_address(|address| connect(&socket, address))
        .map_err(AskError::Connect)?;
    let answer = || -> io::Result<Outcome> {
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
        send(&socket, &serde_json::to_vec(verb)?, SendFlags::NOSIGNAL)?;
        let mut bytes = [0; MAX_REPLY_BYTES];
        let (length, _) = loop {
            match recv(&socket, &mut bytes, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        match length {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(serde_json::from_slice(&bytes[..length])?),
        }
    };
    match answer().map_err(AskError::Answer)? {
        Outcome::Result(_) => Ok(()),
        Outcome::Error(reason) => Err(AskError::Refused(reason)),
    }
}
