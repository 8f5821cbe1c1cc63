//! Guests without an operating system, as ELF files.
//!
//! Both are small enough to run where guest kernel code is interpreted: they
//! leave privilege level 0 as soon as they can.

pub mod pattern;

/// Tries out the machine and its devices. Which scenario it plays is the first
/// word of its command line; `guest/src/scenarios.rs` lists them. It prints what
/// it finds on COM1 and powers off; if anything is not as it must be, it prints
/// `failed:` and the reason, and resets.
pub static PROBE: &[u8] = include_bytes!(concat!(env!("PROBE_GUESTS"), "/probe"));

/// Writes one byte to COM1 before anything else. Then, if its command line starts
/// with `i` (for "idle"), it halts for good, else it powers off. It starts by the
/// Linux 64-bit protocol and by PVH, so that other virtual machine monitors boot
/// it too.
pub static FIRST_INSTRUCTION: &[u8] =
    include_bytes!(concat!(env!("PROBE_GUESTS"), "/first-instruction"));

/// The byte that [`FIRST_INSTRUCTION`] writes.
pub const FIRST_BYTE: u8 = b'!';
