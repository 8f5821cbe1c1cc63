//! The host's end of the control connection.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_protocol::{Decoder, GuestMessage, HostMessage, WireError, write_message};

/// How long a guest may leave a message unread that is larger than all buffers
/// on the way.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// The control connection.
#[derive(Debug)]
pub struct Control {
    socket: UnixStream,
    decoder: Decoder,
}

/// What one reading of the connection gave.
#[derive(Debug, Default)]
pub struct Received {
    /// Messages, in order.
    pub messages: Vec<GuestMessage>,
    /// The guest closed the connection after them.
    pub closed: bool,
}

impl Control {
    /// Takes over the connection.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self {
            socket,
            decoder: Decoder::default(),
        })
    }

    /// Sends one message. The guest's init reads as soon as it can.
    pub fn send(&self, message: &HostMessage) -> Result<(), WireError> {
        write_message(&self.socket, message)
    }

    /// Reads once; the caller knows that there is something to read.
    pub fn receive(&mut self) -> Result<Received, WireError> {
        let mut buffer = [0; 16 << 10];
        let mut received = Received::default();
        match self.socket.read(&mut buffer) {
            Ok(0) => received.closed = true,
            Ok(n) => self.decoder.push(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                received.closed = true;
            }
            Err(error) => return Err(error.into()),
        }
        while let Some(message) = self.decoder.next_message()? {
            received.messages.push(message);
        }
        Ok(received)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
