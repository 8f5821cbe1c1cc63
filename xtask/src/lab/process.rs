//! Child processes that do not outlive this one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::io::FdFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal,
};

use crate::command::{describe, last_lines};

const SHOWN_LINES: usize = 15;

/// A command whose process is killed when the *thread* that started it ends
/// (`PR_SET_PDEATHSIG`), however that comes about: start it from the main
/// thread. It is in a process group of its own, out of reach of the terminal's
/// Ctrl-C, and what it prints is kept for messages.
pub struct TiedCommand {
    command: Command,
    inherited: Vec<OwnedFd>,
}

impl TiedCommand {
    /// A command without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            inherited: Vec::new(),
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = S>) -> &mut Self {
        self.command.args(arguments);
        self
    }

    /// Lets the process have `descriptor`, under the number returned.
    pub fn inherit(&mut self, descriptor: impl Into<OwnedFd>) -> RawFd {
        let descriptor = descriptor.into();
        let number = descriptor.as_raw_fd();
        self.inherited.push(descriptor);
        number
    }

    /// Starts the process.
    pub fn start(mut self) -> Result<Tied> {
        let line = describe(&self.command);
        let failed = || format!("cannot run `{line}`");
        let printed = tempfile::tempfile().with_context(failed)?;
        let inherited = std::mem::take(&mut self.inherited);
        let parent = getpid();
        self.command
            .stdin(Stdio::null())
            .stdout(printed.try_clone().with_context(failed)?)
            .stderr(printed.try_clone().with_context(failed)?)
            .process_group(0);
        // SAFETY: between fork and exec this calls prctl(2), getppid(2) and
        // fcntl(2), which are async-signal-safe, and reads `inherited`, which
        // is not shared with a thread that could hold a lock on it.
        unsafe {
            self.command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() != Some(parent) {
                    // The parent ended before the line above.
                    return Err(io::Error::from_raw_os_error(3));
                }
                for descriptor in &inherited {
                    rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
                }
                Ok(())
            });
        }
        let child = self.command.spawn().with_context(failed)?;
        Ok(Tied {
            child,
            printed,
            program: self.command.get_program().to_owned(),
        })
    }

    /// Runs the process to its end, which must be a success.
    pub fn run(self) -> Result<()> {
        let line = describe(&self.command);
        let mut process = self.start()?;
        let status = process.wait()?;
        if !status.success() {
            bail!("`{line}` failed ({status}):\n{}", process.last_words());
        }
        Ok(())
    }
}

/// A process that is killed when this is dropped.
pub struct Tied {
    child: Child,
    printed: File,
    program: OsString,
}

impl Tied {
    /// A descriptor that becomes readable when the process ends.
    pub fn end(&self) -> Result<OwnedFd> {
        pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())
            .with_context(|| format!("cannot watch {:?}", self.program))
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {:?}", self.program))
    }

    /// The end of what the process has printed.
    pub fn last_words(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self
            .printed
            .rewind()
            .and_then(|()| self.printed.read_to_end(&mut bytes));
        match read {
            Ok(_) => last_lines(&String::from_utf8_lossy(&bytes), SHOWN_LINES),
            Err(error) => format!("(what it printed cannot be read: {error})"),
        }
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn a_process_has_the_descriptors_it_was_given() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"handed over").unwrap();
        let mut cat = TiedCommand::new("cat");
        let number = cat.inherit(file);
        cat.arg(format!("/proc/self/fd/{number}"));
        let mut process = cat.start().unwrap();
        assert!(process.wait().unwrap().success());
        assert_eq!(process.last_words(), "handed over");
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let mut process = std::thread::spawn(|| {
            let mut sleep = TiedCommand::new("sleep");
            sleep.arg("600");
            sleep.start().unwrap()
        })
        .join()
        .unwrap();
        let status = process.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
    }

    #[test]
    fn a_dropped_process_is_killed() {
        let mut sleep = TiedCommand::new("sleep");
        sleep.arg("600");
        let process = sleep.start().unwrap();
        let end = process.end().unwrap();
        drop(process);
        let mut events = [rustix::event::PollFd::new(
            &end,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec::try_from(Duration::from_secs(60)).unwrap();
        assert_eq!(rustix::event::poll(&mut events, Some(&limit)), Ok(1));
    }

    #[test]
    fn a_failed_run_tells_what_was_printed() {
        let mut shell = TiedCommand::new("sh");
        shell.args(["-c", "echo no space >&2; exit 1"]);
        let error = shell.run().unwrap_err();
        assert!(error.to_string().contains("no space"), "{error}");
    }
}
