//! The standard streams of a command in a lab, from this side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use lab_init::stream::{Switch, TransferError, receive, send};

/// This side of the command's streams.
pub struct Streams {
    /// Where its input comes from; none: it has an empty one.
    pub stdin: Option<OwnedFd>,
    /// Where its output goes.
    pub stdout: OwnedFd,
    /// Where its errors go.
    pub stderr: OwnedFd,
}

impl Streams {
    /// This process's own streams.
    pub fn inherit() -> Result<Self> {
        let duplicate = |stream: io::Result<OwnedFd>| stream.context("cannot duplicate a stream");
        Ok(Self {
            stdin: Some(duplicate(io::stdin().as_fd().try_clone_to_owned())?),
            stdout: duplicate(io::stdout().as_fd().try_clone_to_owned())?,
            stderr: duplicate(io::stderr().as_fd().try_clone_to_owned())?,
        })
    }
}

/// Carries standard input on a thread that nobody waits for. `ended` is told how many
/// bytes it had.
pub fn carry_input(
    from: OwnedFd,
    port: UnixStream,
    abort: &Switch,
    ended: impl FnOnce(u64) + Send + 'static,
) -> Result<()> {
    let never = Switch::new()?;
    let abort = abort.clone();
    thread::spawn(move || {
        let port = File::from(OwnedFd::from(port));
        match send(&from, &port, &never, &abort) {
            Ok(bytes) => ended(bytes),
            // The lab is going down; it says so elsewhere.
            Err(TransferError::Write(_)) => {}
            Err(TransferError::Read(error)) => {
                eprintln!("lab: standard input cannot be read: {error}");
            }
        }
    });
    Ok(())
}

/// A thread that carries an output.
pub struct OutputCarrier {
    end: Switch,
    thread: JoinHandle<()>,
}

impl OutputCarrier {
    /// Starts it. `closed` is called if nobody reads `to` any more.
    pub fn start(
        port: UnixStream,
        to: OwnedFd,
        closed: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let end = Switch::new()?;
        let thread_end = end.clone();
        let thread = thread::spawn(move || {
            let port = File::from(OwnedFd::from(port));
            if let Err(TransferError::Write(_)) = receive(&port, &to, &thread_end) {
                closed();
            }
        });
        Ok(Self { end, thread })
    }

    /// Waits until the output has arrived, of which there are `bytes`.
    pub fn finish(self, bytes: u64) {
        self.end.throw(bytes);
        let _ = self.thread.join();
    }
}
