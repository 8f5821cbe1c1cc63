//! Counters and latencies of a running microVM, in memory that it shares with the
//! agent.
//!
//! The agent makes the page with [`create`], passes it in the spec, and reads it with
//! [`reader::Reader`] whenever it likes: the VMM is not asked, need not answer, and may
//! be dead. The layout is in `docs/metrics.md` and in [`layout`], which must agree.
//!
//! Writers are the vCPU threads and the event loop. They add to atomics, relaxed, and
//! do nothing else: no lock, no system call, nothing that can fail. A count is made
//! before what it counts can be seen from outside, so whoever has seen an effect finds
//! it counted.

pub mod device;
pub mod histogram;
pub mod layout;
pub mod page;
pub mod reader;
pub mod vcpu;

use std::fs::File;
use std::io;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

/// The size of the file in bytes.
pub const FILE_BYTES: u64 = size_of::<layout::Page>() as u64;

/// The name of the file, as `/proc/PID/fd` shows it: `/memfd:mote-metrics (deleted)`.
pub const FILE_NAME: &str = "mote-metrics";

/// What must be sealed, so that no access to the mapping can fail: nobody may shrink
/// the file, nor grow it to take memory.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// A new page: a memfd of [`FILE_BYTES`] that keeps its size (memfd_create(2),
/// `F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL`).
pub fn create() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(FILE_NAME, flags)?);
    file.set_len(FILE_BYTES)?;
    fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
    Ok(file)
}

/// Whether `file` is of the size that it must have and keeps it.
pub fn is_page(file: &File) -> bool {
    let sized = fstat(file).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(FILE_BYTES));
    // Only files in memory have seals.
    sized && fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
}

/// Whether this host's clock is read without a system call: its clock source is one
/// that the kernel's vDSO reads on x86-64 (`/sys/devices/system/clocksource`). Where it
/// is not, times are better not measured: each would cost an exit as much again. Looked
/// up once for a process: the kernel changes it when it finds it wrong, if ever.
pub fn clock_is_cheap() -> bool {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    static CHEAP: OnceLock<bool> = OnceLock::new();
    *CHEAP.get_or_init(|| {
        let source = std::fs::read_to_string(SOURCE).unwrap_or_default();
        ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"].contains(&source.trim_end())
    })
}

#[cfg(test)]
mod tests;
