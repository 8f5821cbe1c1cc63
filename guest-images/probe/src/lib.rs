//! Guests without an operating system, as ELF files.
//!
//! They are small enough to run where guest kernel code is interpreted: they
//! leave privilege level 0 as soon as they can, or do little.

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

/// Needs a virtio-rng device, and a command line that starts with a number. Writes
/// [`FIRST_BYTE`] to COM1, does each of [`EXITS_PHASES`] so many times in a row, with
/// the byte of the phase after it, and ends. It starts as [`FIRST_INSTRUCTION`] does.
pub static EXITS: &[u8] = include_bytes!(concat!(env!("PROBE_GUESTS"), "/exits"));

/// What [`EXITS`] does: the byte it writes after it, and what it is.
pub const EXITS_PHASES: [(u8, &str); 6] = [
    (b'0', "no exit: the loop itself"),
    (b'1', "port write (COM1, scratch)"),
    (b'2', "port read (COM1, scratch)"),
    (b'3', "MMIO read (virtio, MagicValue)"),
    (b'4', "MMIO write (virtio, QueueSel)"),
    (b'5', "doorbell (virtio, QueueNotify)"),
];
