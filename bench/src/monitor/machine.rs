//! A machine that runs: its console and its end.

use std::collections::VecDeque;
use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::time::Duration;

use super::Monitor;
use super::process::Process;
use crate::error::{BenchError, host};
use crate::interruption;

/// Longer than any start takes on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between the end of a console and the end of its monitor.
const GRACE: Duration = Duration::from_secs(2);

/// How much of what the guest printed goes into an error.
const LAST_BYTES: usize = 1024;

/// A machine that does not outlive its measurement.
pub struct Machine<'a> {
    monitor: &'a Monitor,
    process: Process,
    console: PipeReader,
    /// What has been read of the console and not been asked for.
    unread: Vec<u8>,
    /// What was last printed, for errors.
    last: VecDeque<u8>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(monitor: &'a Monitor, process: Process, console: PipeReader) -> Self {
        Self {
            monitor,
            process,
            console,
            unread: Vec::new(),
            last: VecDeque::new(),
        }
    }

    /// How its monitor is called in tables.
    pub fn name(&self) -> &'static str {
        self.monitor.name()
    }

    /// The PID of its monitor.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits for a byte, past whatever the monitor or firmware prints before.
    pub fn wait_for(&mut self, byte: u8) -> Result<(), BenchError> {
        loop {
            if let Some(at) = self.unread.iter().position(|found| *found == byte) {
                self.unread.drain(..=at);
                return Ok(());
            }
            self.unread.clear();
            if self.read(PATIENCE)? == 0 {
                return Err(self.no_more());
            }
        }
    }

    /// The next byte of the console.
    pub fn byte(&mut self) -> Result<u8, BenchError> {
        if self.unread.is_empty() && self.read(PATIENCE)? == 0 {
            return Err(self.no_more());
        }
        Ok(self.unread.remove(0))
    }

    /// The next line of the console, without its end, once it is complete.
    pub fn line(&mut self, patience: Duration) -> Result<String, BenchError> {
        loop {
            if let Some(at) = self.unread.iter().position(|found| *found == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=at).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.read(patience)? == 0 {
                return Err(self.no_more());
            }
        }
    }

    fn read(&mut self, patience: Duration) -> Result<usize, BenchError> {
        self.wait_readable(&self.console, patience)?;
        let mut bytes = [0; 4096];
        let read = self.console.read(&mut bytes);
        let length = read.map_err(host("read what a guest prints"))?;
        self.unread.extend_from_slice(&bytes[..length]);
        self.last.extend(&bytes[..length]);
        let surplus = self.last.len().saturating_sub(LAST_BYTES);
        self.last.drain(..surplus);
        Ok(length)
    }

    fn no_more(&mut self) -> BenchError {
        // How it ended must be known before what it says is read: that ends it.
        let ending = self.ending();
        BenchError::TooEarly {
            name: self.monitor.name().to_owned(),
            ending,
            errors: self.process.errors(),
            console: String::from_utf8_lossy(self.last.make_contiguous())
                .trim()
                .to_owned(),
        }
    }

    /// How the monitor ended whose console is closed; its end may be a moment later.
    fn ending(&mut self) -> String {
        let ended = match self.process.pidfd() {
            Ok(pidfd) => self.wait_readable(&pidfd, GRACE).is_ok(),
            Err(_) => false,
        };
        match ended.then(|| self.process.wait()) {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => error.to_string(),
            None => "its console closed though it runs".to_owned(),
        }
    }

    /// Waits for the end of its monitor, and sees that it ended well.
    pub fn wait(&mut self) -> Result<(), BenchError> {
        let pidfd = self.process.pidfd().map_err(host("watch a process"))?;
        self.wait_readable(&pidfd, PATIENCE)?;
        let status = self.process.wait().map_err(host("wait for a process"))?;
        self.check(status)
    }

    fn check(&mut self, status: ExitStatus) -> Result<(), BenchError> {
        if status.success() {
            return Ok(());
        }
        Err(BenchError::Ended {
            name: self.monitor.name().to_owned(),
            status,
            errors: self.process.errors(),
        })
    }

    fn wait_readable(&self, fd: impl AsFd, patience: Duration) -> Result<(), BenchError> {
        match interruption::wait_readable(fd, patience)? {
            true => Ok(()),
            false => Err(BenchError::Hangs {
                name: self.monitor.name().to_owned(),
                seconds: patience.as_secs(),
            }),
        }
    }
}
