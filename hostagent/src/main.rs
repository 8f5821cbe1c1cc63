//! The command `mote`.

mod cli;

fn main() -> std::process::ExitCode {
    share_one_heap();
    cli::main()
}

/// Gives all threads one heap. glibc makes one for each thread, up to eight for a processor:
/// page faults and system calls that cost those who wait for the disk, a thread for each file,
/// more than the wait. Nothing here allocates so often that threads would wait for one another.
fn share_one_heap() {
    // SAFETY: this sets a number in glibc, before there is another thread that could read it.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
