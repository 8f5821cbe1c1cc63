//! The guest's end of the control connection.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{CONTROL_PORT, Decoder, GuestMessage, HostMessage, WireError, write_message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::time::ClockId;

use crate::transport::Transport;

/// The control connection.
#[derive(Debug)]
pub struct Control {
    socket: File,
    decoder: Decoder,
    open: bool,
}

impl Control {
    /// Connects to the host.
    pub fn connect(transport: &dyn Transport) -> io::Result<Self> {
        let socket: OwnedFd = transport.connect(CONTROL_PORT)?;
        Ok(Self {
            socket: File::from(socket),
            decoder: Decoder::default(),
            open: true,
        })
    }

    /// Sends one message.
    pub fn send(&self, message: &GuestMessage) -> Result<(), WireError> {
        write_message(&self.socket, message)
    }

    /// Takes the next message that has arrived.
    pub fn next_message(&mut self) -> Result<Option<HostMessage>, WireError> {
        self.decoder.next_message()
    }

    /// Reads what has arrived, without waiting.
    pub fn fill(&mut self) -> Result<(), WireError> {
        let mut buffer = [0; 4096];
        match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.open = false,
            Ok((n, _)) => self.decoder.push(&buffer[..n]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => {
                self.open = false;
                return Err(WireError::Io(errno.into()));
            }
        }
        Ok(())
    }

    /// Whether the host has not closed the connection.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Waits for the next message; `None` if the host closed the connection.
    pub fn wait_message(&mut self, timeout: Duration) -> Result<Option<HostMessage>, WireError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(Some(message));
            }
            if !self.open {
                return Ok(None);
            }
            self.wait_readable(deadline)?;
            self.fill()?;
        }
    }

    /// Waits until the host has closed the connection, whatever it still says.
    pub fn wait_closed(&mut self, timeout: Duration) -> Result<(), WireError> {
        let deadline = Instant::now() + timeout;
        while self.open {
            self.wait_readable(deadline)?;
            self.fill()?;
            while self.next_message()?.is_some() {}
        }
        Ok(())
    }

    fn wait_readable(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A time to wait.
pub fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Nanoseconds of guest time since the kernel started.
pub fn uptime_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
