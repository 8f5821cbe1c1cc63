//! Signals sent to this process while a workload runs.

use std::fs;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use signal_hook::SigId;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
};
use signal_hook::low_level;

/// What is passed on to the workload beside [`REAL_TIME`] signals. The rest has a
/// meaning for this process alone (SIGCHLD, SIGPIPE, SIGURG, job control, faults,
/// a terminal that changes its size) or cannot be caught.
const FORWARDED: [i32; 10] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO,
];
/// From SIGRTMIN to SIGRTMAX as the C library counts them (signal(7)): systemd in a
/// guest is stopped by one.
const REAL_TIME: RangeInclusive<i32> = 34..=64;

/// Catches signals that are passed on until dropped.
#[derive(Debug)]
pub struct Signals {
    arrived: UnixStream,
    handlers: Vec<SigId>,
}

impl Signals {
    /// Starts catching.
    pub fn catch() -> io::Result<Self> {
        let (arrived, sender) = UnixStream::pair()?;
        arrived.set_nonblocking(true)?;
        // A full socket loses signals, as too many pending ones are lost anyway.
        sender.set_nonblocking(true)?;
        let mut signals = Self {
            arrived,
            handlers: Vec::new(),
        };
        let ignored = ignored_signals();
        for signal in FORWARDED.into_iter().chain(REAL_TIME) {
            // nohup(1) and a shell's background jobs mean it.
            if ignored & (1 << (signal - 1)) != 0 {
                continue;
            }
            let sender = sender.try_clone()?;
            // The numbers are at most 64.
            let byte = signal as u8;
            let tell = move || {
                let _ = (&sender).write(&[byte]);
            };
            // SAFETY: the handler only calls write(2), which is
            // async-signal-safe, and neither allocates, locks nor panics.
            let id = unsafe { low_level::register(signal, tell)? };
            signals.handlers.push(id);
        }
        Ok(signals)
    }

    /// What has arrived, in order.
    pub fn take(&mut self) -> Vec<i32> {
        let mut buffer = [0; 64];
        match self.arrived.read(&mut buffer) {
            Ok(n) => buffer[..n].iter().map(|byte| i32::from(*byte)).collect(),
            Err(_) => Vec::new(),
        }
    }
}

/// Notices when somebody insists: the same signal, three times within a moment.
/// A guest that no longer answers is ended so.
#[derive(Debug, Default)]
pub struct Insistence {
    last: Option<(i32, Instant)>,
    times: u32,
}

impl Insistence {
    const TIMES: u32 = 3;
    const MOMENT: Duration = Duration::from_secs(1);

    /// Takes note of `signal`, which arrived at `now`; returns whether it was
    /// once too often. Signals that do not ask for an end never are.
    pub fn notice(&mut self, signal: i32, now: Instant) -> bool {
        if ![SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&signal) {
            return false;
        }
        let again = self
            .last
            .is_some_and(|(last, at)| last == signal && now.duration_since(at) <= Self::MOMENT);
        self.times = if again { self.times + 1 } else { 1 };
        self.last = Some((signal, now));
        self.times >= Self::TIMES
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arrived.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.handlers.drain(..) {
            low_level::unregister(id);
        }
    }
}

/// Whether this process was started with a signal ignored.
pub fn is_ignored(signal: i32) -> bool {
    ignored_signals() & (1 << (signal - 1)) != 0
}

/// A bit for each signal that this process was started with ignored.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_ignored(&status).unwrap_or(0)
}

fn parse_ignored(status: &str) -> Option<u64> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_signal_three_times_in_a_moment_is_insistence() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut insistence = Insistence::default();
        let mut notice = |signal, milliseconds| insistence.notice(signal, at(milliseconds));
        assert!(!notice(SIGINT, 0));
        assert!(!notice(SIGINT, 500));
        assert!(!notice(SIGTERM, 600), "another");
        assert!(!notice(SIGINT, 700));
        assert!(!notice(SIGINT, 1800), "later");
        assert!(!notice(SIGINT, 1900));
        assert!(notice(SIGINT, 2000));
        for milliseconds in 3000..3010 {
            assert!(!notice(SIGUSR1, milliseconds));
        }
    }

    #[test]
    fn ignored_signals_are_read_from_the_process_status() {
        let status = "Name:\tmote\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000001\n";
        assert_eq!(parse_ignored(status), Some(1 << (SIGHUP - 1)));
        assert_eq!(parse_ignored("Name:\tmote\n"), None);
    }
}
