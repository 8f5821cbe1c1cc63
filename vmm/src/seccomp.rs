//! One system call filter for each kind of thread (`seccomp(2)`).
//!
//! The policies are `seccomp/*.json`, with a reason beside each rule. What no rule
//! allows kills the process.

use std::io;

/// The kinds of thread of a running microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// The one that serves all devices.
    EventLoop,
    /// One that runs a vCPU.
    Vcpu,
}

/// `struct sock_filter` of linux/filter.h.
const INSTRUCTION_BYTES: usize = 8;

/// Of the alignment that the kernel's structure has.
#[repr(C, align(8))]
struct Program<const BYTES: usize>([u8; BYTES]);

static EVENT_LOOP: Program<{ include_bytes!(concat!(env!("OUT_DIR"), "/event_loop.bpf")).len() }> =
    Program(*include_bytes!(concat!(env!("OUT_DIR"), "/event_loop.bpf")));
static VCPU: Program<{ include_bytes!(concat!(env!("OUT_DIR"), "/vcpu.bpf")).len() }> =
    Program(*include_bytes!(concat!(env!("OUT_DIR"), "/vcpu.bpf")));

impl ThreadKind {
    fn program(self) -> &'static [u8] {
        match self {
            Self::EventLoop => &EVENT_LOOP.0,
            Self::Vcpu => &VCPU.0,
        }
    }
}

/// Lets all threads allocate from one heap, and all of it from `brk(2)`. Else the C
/// library makes one for each vCPU thread, on the way to its first instruction, and
/// maps large pieces apart, which the filters do not allow.
pub fn share_one_heap() {
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_MAX, 0)] {
        // SAFETY: sets a parameter of the allocator; no other thread runs yet.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Puts the calling thread behind the filter of `kind`, for good. Threads it has
/// started, or will, are not affected: none may be started any more.
pub fn install(kind: ThreadKind) -> io::Result<()> {
    // Else the kernel takes filters from root only.
    rustix::thread::set_no_new_privs(true)?;
    let program = kind.program();
    let filter = libc::sock_fprog {
        len: (program.len() / INSTRUCTION_BYTES) as u16,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `filter` describes a static program of that many instructions, laid
    // out as the kernel's structure is; the kernel copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
