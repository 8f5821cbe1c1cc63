//! Carries bytes between a descriptor with an end of file (a pipe, a file, a
//! terminal) and one without (a virtio serial port, or the socket that is its
//! other end). Both the lab and the machine use it, mirrored.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// The largest write a virtio serial port takes at once on Linux.
const CHUNK_BYTES: usize = 32 << 10;

/// What ends a transfer before its end of file. Clones are handles to one flag.
#[derive(Debug, Clone)]
pub struct Switch(Arc<SwitchState>);

#[derive(Debug)]
struct SwitchState {
    event: OwnedFd,
    value: AtomicU64,
}

/// [`Switch`] values below this are byte counts.
const UNSET: u64 = u64::MAX;

impl Switch {
    /// A switch that has not been thrown.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(SwitchState {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            value: AtomicU64::new(UNSET),
        })))
    }

    /// Throws the switch. For [`receive`] `value` is the length of the stream;
    /// [`send`] only looks at whether it was thrown.
    pub fn throw(&self, value: u64) {
        self.0.value.store(value, Ordering::Release);
        // An eventfd takes 2^64 - 2 such writes.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }

    fn value(&self) -> Option<u64> {
        Some(self.0.value.load(Ordering::Acquire)).filter(|value| *value != UNSET)
    }
}

/// How a transfer failed.
#[derive(Debug)]
pub enum TransferError {
    /// Reading failed.
    Read(io::Error),
    /// Writing failed: for a pipe, mostly because nobody reads it any more.
    Write(io::Error),
}

/// Copies `from` to `to` and returns the number of bytes.
///
/// Ends at the end of `from`. Once `drain` is thrown it also ends where reading
/// would wait: what was written before is not lost, and a process that keeps
/// the pipe open does not hold things up. Ends at once when `abort` is thrown.
pub fn send(
    from: impl AsFd,
    to: &File,
    drain: &Switch,
    abort: &Switch,
) -> Result<u64, TransferError> {
    let mut total = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let draining = drain.value().is_some();
        let readable = wait(from.as_fd(), &[drain, abort]).map_err(TransferError::Read)?;
        if abort.value().is_some() || (draining && !readable) {
            return Ok(total);
        }
        if !readable {
            continue;
        }
        let count = match rustix::io::read(from.as_fd(), &mut buffer) {
            // EIO: the last process has left the terminal.
            Ok(0) | Err(Errno::IO) => return Ok(total),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(TransferError::Read(error.into())),
        };
        let mut to = to;
        to.write_all(&buffer[..count])
            .map_err(TransferError::Write)?;
        total += count as u64;
    }
}

/// Copies `from` to `to` until as many bytes have passed as `end` says.
pub fn receive(mut from: &File, to: impl AsFd, end: &Switch) -> Result<(), TransferError> {
    let mut total = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    while end.value().is_none_or(|length| total < length) {
        let undecided = end.value().is_none();
        let waited_for: &[&Switch] = if undecided { &[end] } else { &[] };
        if !wait(from.as_fd(), waited_for).map_err(TransferError::Read)? {
            continue;
        }
        let count = match from.read(&mut buffer) {
            Ok(0) => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(TransferError::Read(error));
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(TransferError::Read(error)),
        };
        write_all(to.as_fd(), &buffer[..count]).map_err(TransferError::Write)?;
        total += count as u64;
    }
    Ok(())
}

/// Waits until `from` can be read without waiting (its end of file counts), or
/// one of `switches` is thrown; says whether `from` can be read.
fn wait(from: BorrowedFd<'_>, switches: &[&Switch]) -> io::Result<bool> {
    let mut events = vec![PollFd::from_borrowed_fd(from, PollFlags::IN)];
    events.extend(
        switches
            .iter()
            .map(|switch| PollFd::new(&switch.0.event, PollFlags::IN)),
    );
    match poll(&mut events, None) {
        Ok(_) => Ok(!events[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // A standard stream may be non-blocking: the terminal's other users
            // share its flags.
            Err(Errno::AGAIN) => {
                let mut events = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                match poll(&mut events, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn socket_pair() -> (File, File) {
        let (one, other) = UnixStream::pair().unwrap();
        (
            File::from(OwnedFd::from(one)),
            File::from(OwnedFd::from(other)),
        )
    }

    fn pipe() -> (File, File) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        (File::from(read), File::from(write))
    }

    #[test]
    fn a_stream_arrives_whole_when_its_length_is_told_late_or_early() {
        for told_first in [true, false] {
            let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
            let (port, far_end) = socket_pair();
            let (mut output, input) = pipe();
            let end = Switch::new().unwrap();
            let receiver = {
                let end = end.clone();
                thread::spawn(move || receive(&port, &input, &end).unwrap())
            };
            let collector = thread::spawn(move || {
                let mut collected = Vec::new();
                output.read_to_end(&mut collected).unwrap();
                collected
            });
            if told_first {
                end.throw(bytes.len() as u64);
            }
            (&far_end).write_all(&bytes).unwrap();
            end.throw(bytes.len() as u64);
            receiver.join().unwrap();
            assert!(collector.join().unwrap() == bytes);
        }
    }

    #[test]
    fn a_port_that_closes_early_is_an_error() {
        let (port, far_end) = socket_pair();
        let (_output, input) = pipe();
        let end = Switch::new().unwrap();
        end.throw(10);
        (&far_end).write_all(b"12345").unwrap();
        drop(far_end);
        assert!(matches!(
            receive(&port, &input, &end),
            Err(TransferError::Read(_))
        ));
    }

    #[test]
    fn sending_ends_at_the_end_of_file() {
        let (port, mut far_end) = socket_pair();
        let (output, mut input) = pipe();
        input.write_all(b"all of it").unwrap();
        drop(input);
        let (drain, abort) = (Switch::new().unwrap(), Switch::new().unwrap());
        assert_eq!(send(&output, &port, &drain, &abort).unwrap(), 9);
        drop(port);
        let mut text = String::new();
        far_end.read_to_string(&mut text).unwrap();
        assert_eq!(text, "all of it");
    }

    #[test]
    fn draining_takes_what_is_there_though_the_pipe_stays_open() {
        let (port, _far_end) = socket_pair();
        let (output, mut input) = pipe();
        let (drain, abort) = (Switch::new().unwrap(), Switch::new().unwrap());
        input.write_all(b"before the exit").unwrap();
        drain.throw(0);
        assert_eq!(send(&output, &port, &drain, &abort).unwrap(), 15);
    }

    #[test]
    fn aborting_ends_a_send_that_waits() {
        let (port, _far_end) = socket_pair();
        let (output, _input) = pipe();
        let (drain, abort) = (Switch::new().unwrap(), Switch::new().unwrap());
        let thrower = {
            let abort = abort.clone();
            thread::spawn(move || abort.throw(0))
        };
        assert_eq!(send(&output, &port, &drain, &abort).unwrap(), 0);
        thrower.join().unwrap();
    }

    #[test]
    fn a_reader_that_left_is_a_write_error() {
        let (port, far_end) = socket_pair();
        let (output, input) = pipe();
        drop(output);
        let end = Switch::new().unwrap();
        (&far_end).write_all(b"too late").unwrap();
        assert!(matches!(
            receive(&port, &input, &end),
            Err(TransferError::Write(_))
        ));
    }
}
