//! Signals of PID 1 itself, and what its children must not inherit of them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Tells when a child may have ended.
#[derive(Debug)]
pub struct ChildSignal {
    descriptor: OwnedFd,
}

impl ChildSignal {
    /// Blocks every signal for this process, which must have no other thread,
    /// and turns SIGCHLD into a descriptor.
    pub fn new() -> io::Result<Self> {
        set_mask(&full_set())?;
        let mut set = empty_set();
        // SAFETY: the set was initialized by sigemptyset.
        unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
        // SAFETY: a new descriptor is asked for, with an initialized set.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd returned a descriptor that nothing else owns.
        let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { descriptor })
    }

    /// Forgets the signals that have arrived.
    pub fn clear(&self) {
        let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.descriptor, &mut buffer).is_ok_and(|n| n > 0) {}
    }
}

impl AsFd for ChildSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Gives a child that is about to execute a program every signal's default
/// action, and blocks none.
pub fn reset() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is no handler of ours. The signals for which this
        // fails (SIGKILL, SIGSTOP, those of the C library) have no other action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_mask(&empty_set())
}

/// Sends a signal to one process.
pub fn send(pid: rustix::process::Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill(2) only takes numbers.
    let result = unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// Kills every process but this one.
pub fn kill_all() {
    // Outside of a guest, "every process" would be those of somebody's machine.
    if std::process::id() != 1 {
        return;
    }
    // SAFETY: kill(2) only takes numbers. -1 is every process but PID 1 and the
    // caller, which are the same.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes what it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it has just been initialized.
    unsafe { set.assume_init() }
}

fn full_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes what it is given.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: it has just been initialized.
    unsafe { set.assume_init() }
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialized; no old mask is asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
