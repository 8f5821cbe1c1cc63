//! One stream of the workload: bytes from one descriptor to another, no more
//! than a buffer ahead of the slower side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

/// Larger than a vsock packet (64 KiB), so that the driver is woken for full
/// ones.
const BUFFER_BYTES: usize = 128 << 10;

/// How many buffers one turn may move, so that a fast stream does not keep
/// signals and the other streams waiting.
const BUFFERS_PER_TURN: usize = 8;

/// Moves a stream. Both descriptors must be non-blocking.
#[derive(Debug)]
pub struct Pump {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    /// The target is a socket on which the end is a half-close; else it is a
    /// pipe and the end is its closing.
    half_close: bool,
    /// Nobody will write to `from` any more, whoever still holds it open.
    last_call: bool,
    buffer: Vec<u8>,
    sent: usize,
    filled: usize,
}

impl Pump {
    /// From the host to the workload's standard input.
    pub fn to_workload(socket: OwnedFd, pipe: OwnedFd) -> Self {
        Self::new(socket, pipe, false)
    }

    /// From the workload's output to the host.
    pub fn to_host(pipe: OwnedFd, socket: OwnedFd) -> Self {
        Self::new(pipe, socket, true)
    }

    fn new(from: OwnedFd, to: OwnedFd, half_close: bool) -> Self {
        Self {
            from: Some(from),
            to: Some(to),
            half_close,
            last_call: false,
            buffer: vec![0; BUFFER_BYTES],
            sent: 0,
            filled: 0,
        }
    }

    /// What to wait for before the next [`Pump::turn`]; `None` when there is
    /// nothing more to do.
    pub fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if self.sent < self.filled {
            Some((self.to.as_ref()?.as_fd(), PollFlags::OUT))
        } else {
            Some((self.from.as_ref()?.as_fd(), PollFlags::IN))
        }
    }

    /// Whether the stream goes to the host.
    pub fn is_output(&self) -> bool {
        self.half_close
    }

    /// Whether all has been moved, or cannot be.
    pub fn is_done(&self) -> bool {
        self.waits_for().is_none()
    }

    /// From now on, an empty source is at its end.
    pub fn expect_no_more(&mut self) {
        self.last_call = true;
    }

    /// Moves what can be moved without waiting.
    pub fn turn(&mut self) {
        for _ in 0..BUFFERS_PER_TURN {
            if self.sent == self.filled && !self.fill() {
                return;
            }
            if !self.drain() {
                return;
            }
        }
    }

    /// Reads once into the empty buffer; false if there is nothing to write.
    fn fill(&mut self) -> bool {
        let Some(from) = &self.from else { return false };
        match rustix::io::read(from, &mut self.buffer[..]) {
            Ok(0) => self.end(),
            Ok(n) => {
                self.sent = 0;
                self.filled = n;
                return true;
            }
            Err(Errno::AGAIN) if self.last_call => self.end(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A host that resets the connection has no more input.
            Err(_) => self.end(),
        }
        false
    }

    /// Writes until the buffer is empty; false if it could not be emptied.
    fn drain(&mut self) -> bool {
        while self.sent < self.filled {
            let Some(to) = &self.to else { return false };
            match rustix::io::write(to, &self.buffer[self.sent..self.filled]) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                // Nobody reads any more. Whoever writes must learn it, as from
                // a closed pipe: give up both sides.
                Err(_) => {
                    self.from = None;
                    self.to = None;
                    self.sent = self.filled;
                    return false;
                }
            }
        }
        true
    }

    /// The source is at its end and the buffer empty.
    fn end(&mut self) {
        self.from = None;
        if self.half_close {
            // The socket stays open: what was written is on its way.
            if let Some(to) = &self.to {
                let _ = rustix::net::shutdown(to, Shutdown::Write);
            }
        } else {
            self.to = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    fn sockets() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn output_arrives_and_its_end_is_a_half_close() {
        let (output, workload) = pipe();
        let (ours, mut host) = sockets();
        let mut pump = Pump::to_host(output, ours.into());
        rustix::io::write(&workload, b"all of it").unwrap();
        drop(workload);
        pump.turn();
        assert!(pump.is_done());
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "all of it");
    }

    #[test]
    fn a_slow_host_stops_the_pump_and_loses_nothing() {
        let (output, workload) = pipe();
        let (ours, mut host) = sockets();
        let mut pump = Pump::to_host(output, ours.into());
        let mut sent = 0u64;
        // Until neither the pump nor the pipe takes any more.
        let piece = [7; 4096];
        while let Ok(n) = rustix::io::write(&workload, &piece) {
            sent += n as u64;
            pump.turn();
        }
        let (_, wanted) = pump.waits_for().unwrap();
        assert_eq!(wanted, PollFlags::OUT);
        drop(workload);
        host.set_nonblocking(true).unwrap();
        let mut received = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match host.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => received += n as u64,
                Err(_) => pump.turn(),
            }
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn a_host_that_closes_its_end_breaks_the_workloads_pipe() {
        let (output, workload) = pipe();
        let (ours, host) = sockets();
        let mut pump = Pump::to_host(output, ours.into());
        drop(host);
        rustix::io::write(&workload, b"x").unwrap();
        pump.turn();
        assert!(pump.is_done());
        assert_eq!(rustix::io::write(&workload, b"x"), Err(Errno::PIPE));
    }

    #[test]
    fn the_end_of_input_closes_the_workloads_pipe() {
        let (workload, input) = pipe();
        let (ours, mut host) = sockets();
        let mut pump = Pump::to_workload(ours.into(), input);
        host.write_all(b"in").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        pump.turn();
        assert!(pump.is_done());
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&workload, &mut buffer), Ok(2));
        assert_eq!(rustix::io::read(&workload, &mut buffer), Ok(0));
    }

    #[test]
    fn a_workload_that_closes_its_input_ends_the_hosts_stream() {
        let (workload, input) = pipe();
        let (ours, mut host) = sockets();
        let mut pump = Pump::to_workload(ours.into(), input);
        drop(workload);
        host.write_all(b"in").unwrap();
        pump.turn();
        assert!(pump.is_done());
        assert!(host.write_all(b"more").is_err());
    }

    #[test]
    fn after_the_last_call_an_open_pipe_without_bytes_is_at_its_end() {
        let (output, _still_open) = pipe();
        let (ours, mut host) = sockets();
        let mut pump = Pump::to_host(output, ours.into());
        rustix::io::write(&_still_open, b"rest").unwrap();
        pump.expect_no_more();
        pump.turn();
        assert!(pump.is_done());
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "rest");
    }
}
