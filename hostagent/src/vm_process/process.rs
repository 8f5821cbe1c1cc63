//! The process itself.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jail::{Cgroup, CgroupLimits, Cgroups, Ended, Jail, JailError, Jailed, NewNamespaces};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use vmm::event::{Event, EventKind};
use vmm::spec::VmSpec;

use super::channel::{Channel, ChannelError, Connection};
use super::descriptors::InheritedDescriptors;
use super::ending::{self, Ending, OutOfMemory};
use super::events::EventDecoder;
use super::machine::{Ends, Machine};
use super::tail::Tail;

/// The VMM's file name; it is installed beside `mote`.
pub(super) const PROGRAM: &str = "mote-vmm";

/// Why no VMM was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Where this program lies is not known, so neither is where `mote-vmm` is.
    #[error("cannot find the directory of this program, where {PROGRAM} should be")]
    OwnPath(#[source] io::Error),
    /// A pipe, a socket or a memory file was refused.
    #[error("cannot prepare the descriptors of {PROGRAM}")]
    Descriptors(#[source] io::Error),
    /// The spec could not be written.
    #[error("cannot write the VM spec")]
    Spec(#[source] io::Error),
    /// The cgroup could not be made, or not be limited.
    #[error("cannot make a cgroup for {PROGRAM}")]
    Cgroup(#[source] io::Error),
    /// No namespaces for the process.
    #[error("cannot make namespaces for the VMM's process")]
    Namespaces(#[source] io::Error),
    /// The program did not start.
    #[error("cannot start {}; it is installed together with mote", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system reported.
        source: StartError,
    },
}

impl From<Errno> for SpawnError {
    fn from(errno: Errno) -> Self {
        Self::Descriptors(errno.into())
    }
}

/// Why the program did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] io::Error),
    /// It could not be confined or executed.
    #[error(transparent)]
    Jail(#[from] JailError),
}

/// Why a running VMM can no longer be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Waiting failed.
    #[error("cannot wait for {PROGRAM}")]
    Wait(#[source] io::Error),
    /// A connection of the guest could not be taken over.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// How much is read from one source before the others have their turn. A guest
/// may print, and connect, without end.
const READS_PER_TURN: usize = 16;

/// `mote-vmm` beside the running program.
pub fn default_program() -> Result<PathBuf, SpawnError> {
    let own = std::env::current_exe().map_err(SpawnError::OwnPath)?;
    Ok(own.with_file_name(PROGRAM))
}

/// What is started for a microVM.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    confined: bool,
}

impl Program {
    /// A `mote-vmm`. It is confined, always.
    pub fn vmm(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            confined: true,
        }
    }

    /// A test's stand-in for `mote-vmm`, which needs the host's files.
    pub fn unconfined_stand_in(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            confined: false,
        }
    }

    fn start_failed(&self, source: StartError) -> SpawnError {
        SpawnError::Start {
            program: self.path.clone(),
            source,
        }
    }
}

/// A running VMM. Dropping it kills it.
#[derive(Debug)]
pub struct VmProcess {
    child: Jailed,
    /// Until the process has ended: fields are dropped in order.
    cgroup: Option<Cgroup>,
    /// When it was started.
    host_kills_before: u64,
    channel: Channel,
    control: Option<OwnedFd>,
    /// Kept open for those who read it.
    metrics: File,
    events: Option<File>,
    event_decoder: EventDecoder,
    stderr: Option<File>,
    stderr_tail: Tail,
    console: Option<File>,
    console_tail: Tail,
    /// The first failure, fault, reset or power-off that was reported.
    last_word: Option<EventKind>,
    status: Option<ExitStatus>,
}

/// What [`VmProcess::wait`] woke up for.
#[derive(Debug, Default)]
pub struct Wakeup {
    /// What the VMM reported.
    pub events: Vec<Event>,
    /// What the guest connected to.
    pub connections: Vec<Connection>,
    /// Which of the caller's descriptors are ready, in their order.
    pub ready: Vec<bool>,
    /// Whether the process has ended. All it wrote has been read then.
    pub ended: bool,
}

impl VmProcess {
    /// Starts `program` with `machine`, in a cgroup among `cgroups`.
    ///
    /// The process is killed when the calling thread ends, so call this from one
    /// that lasts as long as the machine shall.
    pub fn spawn(
        program: &Program,
        mut machine: Machine,
        cgroups: Option<&Cgroups>,
    ) -> Result<Self, SpawnError> {
        // First, since it takes the longest of all.
        let namespaces = match (machine.namespaces.take(), program.confined) {
            (None, true) => NewNamespaces::begin().map_err(SpawnError::Namespaces)?,
            (namespaces, _) => namespaces,
        };
        let (channel, channel_end) = Channel::pair()?;
        // What is not read in time is lost: a full pipe must not stop the guest.
        let (events, events_end) = reader()?;
        rustix::fs::fcntl_setfl(&events_end, OFlags::NONBLOCK)?;
        let (console, console_end) = reader()?;
        rustix::fs::fcntl_setfl(&console_end, OFlags::NONBLOCK)?;
        let (stderr, stderr_end) = reader()?;
        let (control, control_end) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;

        let metrics = vmm::metrics::create().map_err(SpawnError::Descriptors)?;
        let mut inherited = InheritedDescriptors::default();
        let ends = Ends {
            metrics: metrics.try_clone().map_err(SpawnError::Descriptors)?.into(),
            console: console_end,
            events: events_end,
            channel: channel_end,
            control: control_end,
        };
        let (id, io_limits) = (machine.id.clone(), machine.io_limits.clone());
        let spec = machine.into_spec(ends, &mut inherited)?;
        let spec_number = inherited.pass(&Arc::new(spec_file(&spec)?))?;

        let arguments = [PROGRAM, "--spec-fd", &spec_number.to_string()];
        let arguments = arguments.map(|text| CString::new(text).unwrap_or_default());
        let limits = vmm::limits::of(&spec, inherited.greatest());
        let cgroup_limits = CgroupLimits {
            io: io_limits,
            ..vmm::limits::of_cgroup(&spec)
        };
        let cgroup = Cgroup::create(cgroups, &id, &cgroup_limits);
        let cgroup = cgroup.map_err(SpawnError::Cgroup)?;
        let open_flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let executable = rustix::fs::open(&program.path, open_flags, Mode::empty())
            .map_err(|errno| program.start_failed(io::Error::from(errno).into()))?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let jail = Jail {
            program: executable.as_fd(),
            arguments: arguments.to_vec(),
            standard: [null.as_fd(), null.as_fd(), stderr_end.as_fd()],
            descriptors: inherited.all().collect(),
            limits,
            namespaces,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            dies_with_parent: true,
        };
        let child = match program.confined {
            true => jail.spawn(),
            false => jail.spawn_unconfined(),
        };
        let child = child.map_err(|error| program.start_failed(error.into()))?;
        // With them go the child's ends of everything.
        drop((inherited, stderr_end));
        // Now that the VMM is busy.
        if let Some(cgroups) = cgroups {
            cgroups.remove_abandoned();
        }
        Ok(Self {
            child,
            cgroup,
            // Now that the VMM is busy.
            host_kills_before: ending::host_kills(),
            channel,
            control: Some(control),
            metrics,
            events: Some(events),
            event_decoder: EventDecoder::default(),
            stderr: Some(stderr),
            stderr_tail: Tail::default(),
            console: Some(console),
            console_tail: Tail::default(),
            last_word: None,
            status: None,
        })
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// This end of its control socket ([`vmm::control`]), once.
    pub fn take_control(&mut self) -> Option<OwnedFd> {
        self.control.take()
    }

    /// Where its page of metrics is open as long as this lives: `/proc/PID/fd/N`.
    pub fn metrics(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.metrics.as_raw_fd());
        format!("/proc/{pid}/fd/{fd}").into()
    }

    /// Waits until the VMM, the guest or one of `others` has something, or until
    /// `deadline`.
    pub fn wait(
        &mut self,
        others: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Wakeup, WatchError> {
        let mut wakeup = Wakeup {
            ready: self.poll(others, deadline)?,
            ..Wakeup::default()
        };
        wakeup.ended = self.has_ended()?;
        // In this order: nothing the process did before its end is missed.
        for _ in 0..READS_PER_TURN {
            let Some(connection) = self.channel.receive()? else {
                break;
            };
            wakeup.connections.push(connection);
        }
        self.read_output(&mut wakeup.events);
        Ok(wakeup)
    }

    fn poll(
        &self,
        others: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Vec<bool>, WatchError> {
        let files = [&self.events, &self.stderr, &self.console];
        let mut fds: Vec<PollFd<'_>> = others
            .iter()
            .map(|other| PollFd::from_borrowed_fd(*other, PollFlags::IN))
            .collect();
        fds.extend(
            files
                .into_iter()
                .flatten()
                .map(|file| PollFd::new(file, PollFlags::IN)),
        );
        if self.status.is_none() {
            fds.push(PollFd::new(&self.channel, PollFlags::IN));
            fds.push(PollFd::new(&self.child, PollFlags::IN));
        }
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(WatchError::Wait(errno.into())),
        }
        let ready = fds[..others.len()]
            .iter()
            .map(|fd| !fd.revents().is_empty());
        Ok(ready.collect())
    }

    fn has_ended(&mut self) -> Result<bool, WatchError> {
        if self.status.is_none() {
            let ended = self.child.try_wait();
            self.status = ended
                .map_err(|errno| WatchError::Wait(errno.into()))?
                .map(Ended::status);
        }
        Ok(self.status.is_some())
    }

    fn read_output(&mut self, events: &mut Vec<Event>) {
        let decoder = &mut self.event_decoder;
        drain(&mut self.events, |bytes| events.extend(decoder.push(bytes)));
        drain(&mut self.stderr, |bytes| self.stderr_tail.push(bytes));
        drain(&mut self.console, |bytes| self.console_tail.push(bytes));
        for event in events {
            let is_last = matches!(
                event.kind,
                EventKind::PoweredOff
                    | EventKind::Reset
                    | EventKind::GuestFault { .. }
                    | EventKind::HostFailure { .. }
            );
            if is_last && self.last_word.is_none() {
                self.last_word = Some(event.kind.clone());
            }
        }
    }

    /// How it ended; `None` while it runs.
    pub fn ending(&self) -> Option<Ending> {
        let status = self.status?;
        Some(Ending::of(status, self.last_word.as_ref(), || {
            self.out_of_memory()
        }))
    }

    /// Whether somebody was killed for want of memory, in the VMM's cgroup or elsewhere.
    fn out_of_memory(&self) -> Option<OutOfMemory> {
        let of_cgroup = self.cgroup.as_ref().map_or(0, Cgroup::out_of_memory_kills);
        if of_cgroup > 0 {
            Some(OutOfMemory::Cgroup)
        } else if ending::host_kills() > self.host_kills_before {
            Some(OutOfMemory::Host)
        } else {
            None
        }
    }

    /// What the VMM printed last.
    pub fn stderr(&self) -> &Tail {
        &self.stderr_tail
    }

    /// What the guest's console printed last.
    pub fn console(&self) -> &Tail {
        &self.console_tail
    }

    /// Waits until it has ended by itself; kills it after `grace`. True if it
    /// did not have to be killed.
    pub fn end_within(&mut self, grace: Duration) -> Result<bool, WatchError> {
        let deadline = Instant::now() + grace;
        while self.status.is_none() && Instant::now() < deadline {
            // Connections that nobody serves any more are closed.
            self.wait(&[], Some(deadline))?;
        }
        let by_itself = self.status.is_some();
        self.kill();
        Ok(by_itself)
    }

    /// Kills it, if it still runs, and takes its status.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            self.child.kill();
            self.status = self.child.wait().ok().map(Ended::status);
            self.read_output(&mut Vec::new());
        }
    }
}

impl Drop for VmProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pipe whose reading end does not block.
fn reader() -> Result<(File, OwnedFd), Errno> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK)?;
    Ok((ours.into(), theirs))
}

/// Reads what is there; closes the file at its end. All that a pipe holds
/// (64 KiB) is read in one turn.
fn drain(file: &mut Option<File>, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 << 10];
    for _ in 0..READS_PER_TURN {
        let Some(open) = file else { return };
        match open.read(&mut buffer) {
            Ok(0) => *file = None,
            Ok(n) => take(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => *file = None,
        }
    }
}

fn spec_file(spec: &VmSpec) -> Result<OwnedFd, SpawnError> {
    let text = serde_json::to_vec(spec).map_err(|error| SpawnError::Spec(error.into()))?;
    let file = rustix::fs::memfd_create(c"vm-spec", MemfdFlags::CLOEXEC)
        .map_err(|errno| SpawnError::Spec(errno.into()))?;
    let file = File::from(file);
    // Leaves the offset, which the child shares, at the start.
    file.write_all_at(&text, 0).map_err(SpawnError::Spec)?;
    Ok(file.into())
}
