//! The signals that end a program by default end this one too.
//!
//! It is process 1 of its PID namespace, and the kernel delivers such a process
//! only signals it has a handler for (pid_namespaces(7)).

use std::mem::MaybeUninit;
use std::ptr;

/// `kill`, Ctrl-C, a terminal that goes away, Ctrl-\.
const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Lets each of them end the process, with exit code 128 and the signal's number.
pub fn handle() {
    for signal in ENDING {
        let handler = end as extern "C" fn(i32);
        // SAFETY: the handler only ends the process, which may be done anywhere.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

extern "C" fn end(signal: i32) {
    // SAFETY: async-signal-safe, and nothing is left that an orderly end would do.
    unsafe { libc::_exit(128 + signal) }
}

/// The ending signals, blocked in this thread and those it starts until this is
/// dropped. vCPUs have no use for them, nor does their filter allow what the handler
/// does.
pub struct Blocked(libc::sigset_t);

impl Blocked {
    /// Blocks them.
    pub fn new() -> Self {
        let mut ending = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: makes `ending` an empty set.
        unsafe { libc::sigemptyset(ending.as_mut_ptr()) };
        for signal in ENDING {
            // SAFETY: the set was made above, the signals exist.
            unsafe { libc::sigaddset(ending.as_mut_ptr(), signal) };
        }
        // SAFETY: reads the set made above, fills `before`; it fails only for a
        // wrong first argument.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ending.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: filled by the call above.
        Self(unsafe { before.assume_init() })
    }
}

impl Default for Blocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: puts back the mask of this thread that `new` has saved.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}
