//! A jailed process, as its parent sees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid,
};

/// A running process in a jail. It is not ended when this is dropped.
#[derive(Debug)]
pub struct Jailed {
    pid: Pid,
    pidfd: OwnedFd,
    ended: Option<Ended>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Ended {
    fn of(status: &WaitIdStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Killed(signal.unwrap_or_default()),
        }
    }

    /// As `wait(2)` has it.
    pub fn status(self) -> ExitStatus {
        use std::os::unix::process::ExitStatusExt;
        ExitStatus::from_raw(match self {
            Self::Exited(code) => (code & 0xff) << 8,
            Self::Killed(signal) => signal & 0x7f,
        })
    }
}

impl Jailed {
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        let ended = None;
        Self { pid, pidfd, ended }
    }

    /// Its PID in the caller's PID namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// That PID as a number, as [`std::process::Child::id`] has it.
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended; `None` while it runs.
    pub fn try_wait(&mut self) -> rustix::io::Result<Option<Ended>> {
        self.wait_with(WaitIdOptions::NOHANG)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> rustix::io::Result<Ended> {
        loop {
            match self.wait_with(WaitIdOptions::empty()) {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn wait_with(&mut self, options: WaitIdOptions) -> rustix::io::Result<Option<Ended>> {
        if self.ended.is_none() {
            let id = WaitId::PidFd(self.pidfd.as_fd());
            let status = waitid(id, options | WaitIdOptions::EXITED)?;
            self.ended = status.as_ref().map(Ended::of);
        }
        Ok(self.ended)
    }

    /// Ends it. One that has ended already stays ended.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// The pidfd: readable when the process has ended.
impl AsFd for Jailed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
