//! The workload from its start to its end: its streams, its signals, the
//! processes it leaves behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use guest_protocol::{
    ExitStatus, GuestMessage, HostMessage, STDERR_PORT, STDIN_PORT, STDOUT_PORT, StartFailure,
    WireError, Workload,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::thread::{Gid, Uid};

use crate::control::{Control, timespec, uptime_ns};
use crate::failure::{Attempt, SetupError, setup_failure};
use crate::process::{self, Stdio};
use crate::pump::Pump;
use crate::signals::{self, ChildSignal};
use crate::transport::Transport;
use crate::users::{self, User};

/// The size of the workload's pipes: as much as an unprivileged process may have
/// (`pipe-max-size`), so that a busy stream is moved in few steps.
const PIPE_BYTES: usize = 1 << 20;

/// How long processes that were killed may take to be gone. One that is stuck in
/// the kernel does not keep the machine from powering off.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often processes that are still there are killed again: a process that
/// forks may escape one round.
const KILL_INTERVAL: Duration = Duration::from_millis(100);

/// Starts the workload, carries its streams and signals, and returns how its
/// main process ended, when every other process has been killed and all output
/// has been sent.
pub fn run(
    transport: &dyn Transport,
    control: &mut Control,
    workload: &Workload,
    cgroup: Option<&File>,
) -> Result<ExitStatus, StartFailure> {
    let children = ChildSignal::new().attempt(|| "cannot watch for SIGCHLD".into())?;
    let user = resolve_user(&workload.user)?;
    let (stdio, pumps) = open_streams(transport, workload.stdin, &user)?;
    let main = process::spawn(workload, &user, stdio, cgroup)?;
    let started = GuestMessage::Started {
        uptime_ns: uptime_ns(),
    };
    let mut guest = Guest {
        control,
        children,
        pumps,
        main,
        status: None,
        has_children: true,
    };
    guest
        .control
        .send(&started)
        .and_then(|()| guest.run())
        .map_err(|error| setup_failure(&error))
}

/// The image's own passwd and group; an image without them has no names.
fn resolve_user(spec: &str) -> Result<User, StartFailure> {
    let read = |path| match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .attempt(|| format!("cannot read {path}")),
    };
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    users::resolve(spec, &passwd, &group).map_err(|error| setup_failure(&error))
}

/// Connects the streams and makes the pipes between them and the workload.
///
/// The workload gets pipes, not sockets: programs open `/dev/stdout`, which is
/// refused for a socket.
fn open_streams(
    transport: &dyn Transport,
    stdin: bool,
    user: &User,
) -> Result<(Stdio, Vec<Pump>), SetupError> {
    let mut pumps = Vec::with_capacity(3);
    let stdin = if stdin {
        let socket = connect(transport, STDIN_PORT, "standard input")?;
        let (theirs, ours) = pipe_for(user)?;
        pumps.push(Pump::to_workload(socket, set_nonblocking(ours)?));
        theirs
    } else {
        let null = File::options().read(true).write(true).open("/dev/null");
        null.attempt(|| "cannot open /dev/null".into())?.into()
    };
    let mut output = |port, name| {
        let socket = connect(transport, port, name)?;
        let (ours, theirs) = pipe_for(user)?;
        pumps.push(Pump::to_host(set_nonblocking(ours)?, socket));
        Ok(theirs)
    };
    let stdio = Stdio {
        stdin,
        stdout: output(STDOUT_PORT, "standard output")?,
        stderr: output(STDERR_PORT, "standard error")?,
    };
    Ok((stdio, pumps))
}

fn connect(transport: &dyn Transport, port: u32, name: &str) -> Result<OwnedFd, SetupError> {
    let socket = transport
        .connect(port)
        .attempt(|| format!("cannot connect {name} to the host (vsock port {port})"))?;
    set_nonblocking(socket)
}

fn set_nonblocking(descriptor: OwnedFd) -> Result<OwnedFd, SetupError> {
    let flags = rustix::fs::fcntl_getfl(&descriptor);
    flags
        .and_then(|flags| rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK))
        .attempt(|| "cannot make a stream non-blocking".into())?;
    Ok(descriptor)
}

/// A pipe that `user` may open again through `/proc/self/fd`.
fn pipe_for(user: &User) -> Result<(OwnedFd, OwnedFd), SetupError> {
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC).attempt(|| "cannot make a pipe".to_owned())?;
    // A smaller pipe works as well.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
    if user.uid != 0 {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        rustix::fs::fchown(&write, Some(uid), Some(gid))
            .attempt(|| format!("cannot give a pipe to user {}", user.uid))?;
    }
    Ok((read, write))
}

struct Guest<'a> {
    control: &'a mut Control,
    children: ChildSignal,
    pumps: Vec<Pump>,
    main: Pid,
    /// How the main process ended, once it has.
    status: Option<ExitStatus>,
    /// Whether any process is left.
    has_children: bool,
}

impl Guest<'_> {
    fn run(&mut self) -> Result<ExitStatus, WireError> {
        let status = loop {
            if let Some(status) = self.status {
                break status;
            }
            self.wait(None)?;
        };
        self.end_all_others()?;
        // Only output is left; it takes as long as the host takes to read it.
        while !self.output_is_sent() {
            self.wait(Some(KILL_INTERVAL))?;
            self.pumps.iter_mut().for_each(Pump::turn);
        }
        Ok(status)
    }

    /// Kills what the main process left behind, while its output goes on.
    fn end_all_others(&mut self) -> Result<(), WireError> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        self.pumps.retain(Pump::is_output);
        while self.has_children && Instant::now() < deadline {
            signals::kill_all();
            self.reap();
            if self.has_children {
                self.wait(Some(KILL_INTERVAL))?;
            }
        }
        for pump in &mut self.pumps {
            pump.expect_no_more();
            pump.turn();
        }
        Ok(())
    }

    fn output_is_sent(&self) -> bool {
        self.pumps.iter().all(Pump::is_done)
    }

    /// Waits for something to happen, and handles it.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), WireError> {
        let mut fds = vec![
            PollFd::new(&self.children, PollFlags::IN),
            PollFd::new(&*self.control, PollFlags::IN),
        ];
        let mut polled = Vec::with_capacity(self.pumps.len());
        for (index, pump) in self.pumps.iter().enumerate() {
            if let Some((descriptor, flags)) = pump.waits_for() {
                fds.push(PollFd::from_borrowed_fd(descriptor, flags));
                polled.push(index);
            }
        }
        match poll(&mut fds, timeout.map(timespec).as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(WireError::Io(errno.into())),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let [child, message, streams @ ..] = ready.as_slice() else {
            return Ok(());
        };
        for (index, _) in polled.iter().zip(streams).filter(|(_, ready)| **ready) {
            self.pumps[*index].turn();
        }
        if *message {
            self.obey()?;
        }
        if *child {
            self.children.clear();
            self.reap();
        }
        Ok(())
    }

    /// Does what the host asks.
    fn obey(&mut self) -> Result<(), WireError> {
        self.control.fill()?;
        while let Some(message) = self.control.next_message()? {
            // The process may have ended; until it is reaped its id is its own.
            if let (HostMessage::Signal(signal), None) = (message, self.status) {
                let _ = signals::send(self.main, signal);
            }
        }
        if self.control.is_open() {
            Ok(())
        } else {
            Err(WireError::Io(io::ErrorKind::ConnectionReset.into()))
        }
    }

    /// Takes the statuses of all processes that have ended, the workload's
    /// orphans among them.
    fn reap(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.main => {
                    self.status = Some(exit_status(status));
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return,
                Err(_) => {
                    self.has_children = false;
                    return;
                }
            }
        }
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signal(signal),
        None => ExitStatus::Code(status.exit_status().unwrap_or_default()),
    }
}
