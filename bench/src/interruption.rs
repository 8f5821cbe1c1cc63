//! Being told to end: whoever waits notices, and everything that was started is ended
//! and removed on the way out.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{BenchError, host};

/// Readable once a signal has come.
static SIGNALLED: OnceLock<UnixStream> = OnceLock::new();

/// From now on SIGINT, SIGTERM and SIGHUP end this process by way of
/// [`BenchError::Interrupted`].
pub fn heed_signals() -> io::Result<()> {
    let (reader, writer) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    // Set once at the start; a second call changes nothing.
    let _ = SIGNALLED.set(reader);
    Ok(())
}

/// Waits until `fd` is readable or has ended; `false` if that lasts for longer than
/// `patience`.
pub fn wait_readable(fd: impl AsFd, patience: Duration) -> Result<bool, BenchError> {
    wait(Some(fd.as_fd()), patience)
}

/// Sleeps.
pub fn sleep(duration: Duration) -> Result<(), BenchError> {
    wait(None, duration).map(drop)
}

fn wait(fd: Option<std::os::fd::BorrowedFd<'_>>, patience: Duration) -> Result<bool, BenchError> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let watched = SIGNALLED.get().map(AsFd::as_fd).into_iter().chain(fd);
        let mut watched: Vec<PollFd<'_>> = watched
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut watched, Some(&timeout)) {
            Ok(0) => return Ok(false),
            // The next poll sees why.
            Err(Errno::INTR) => continue,
            result => result.map_err(host("wait for a process"))?,
        };
        let is_signal = SIGNALLED.get().is_some();
        return match watched.first() {
            Some(first) if is_signal && !first.revents().is_empty() => Err(BenchError::Interrupted),
            _ => Ok(true),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_a_byte_or_with_patience() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!wait_readable(&reader, Duration::ZERO).unwrap());
        drop(writer);
        assert!(wait_readable(&reader, Duration::from_secs(60)).unwrap());
    }
}
