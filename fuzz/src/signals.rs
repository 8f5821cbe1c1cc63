//! What the start of a Rust program does, and that of a fuzz target does not.

/// Lets a write to a closed socket fail, as in `mote-vmm`, instead of ending the
/// process. For a target's `init`.
pub fn ignore_sigpipe() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
