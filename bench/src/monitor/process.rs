//! A monitor's process, however it was started.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus};

use jail::{Cgroup, Ended, Jailed};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that does not outlive its measurement.
pub struct Process {
    kind: Kind,
    errors: Option<PipeReader>,
}

enum Kind {
    Plain(Child),
    /// With the cgroup it was born in, if there are any.
    Jailed {
        child: Jailed,
        // Removed after the process: fields are dropped in order.
        _cgroup: Option<Cgroup>,
    },
}

impl Process {
    /// One as any program starts any other.
    pub fn plain(child: Child, errors: PipeReader) -> Self {
        Self {
            kind: Kind::Plain(child),
            errors: Some(errors),
        }
    }

    /// One in a jail.
    pub fn jailed(child: Jailed, cgroup: Option<Cgroup>, errors: PipeReader) -> Self {
        Self {
            kind: Kind::Jailed {
                child,
                _cgroup: cgroup,
            },
            errors: Some(errors),
        }
    }

    /// Its PID.
    pub fn id(&self) -> u32 {
        match &self.kind {
            Kind::Plain(child) => child.id(),
            Kind::Jailed { child, .. } => child.id(),
        }
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        match &self.kind {
            Kind::Plain(child) => {
                let pid = Pid::from_child(child);
                Ok(pidfd_open(pid, PidfdFlags::empty())?)
            }
            Kind::Jailed { child, .. } => child.as_fd().try_clone_to_owned(),
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.kind {
            Kind::Plain(child) => child.wait(),
            Kind::Jailed { child, .. } => Ok(child.wait().map(Ended::status)?),
        }
    }

    /// Ends it and returns what it says on standard error.
    pub fn errors(&mut self) -> String {
        self.kill();
        let mut text = String::new();
        if let Some(mut errors) = self.errors.take() {
            let _ = errors.read_to_string(&mut text);
        }
        match text.trim() {
            "" => "nothing".to_owned(),
            text => text.to_owned(),
        }
    }

    fn kill(&mut self) {
        match &mut self.kind {
            Kind::Plain(child) => {
                let _ = child.kill();
            }
            Kind::Jailed { child, .. } => child.kill(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.wait();
    }
}
