//! What a vCPU's thread counts.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::{Error, VcpuExit};

use super::layout::VcpuBlock;
use crate::event::monotonic_ns;

/// The counters of one vCPU; does nothing where no metrics are wanted.
#[derive(Debug, Clone, Copy)]
pub struct VcpuMetrics {
    block: Option<&'static VcpuBlock>,
    latencies: bool,
}

/// An exit that is being served, since when.
#[derive(Debug)]
#[must_use]
pub struct Exit {
    since_ns: Option<u64>,
}

impl VcpuMetrics {
    /// Counts into `block`.
    pub(super) fn new(block: Option<&'static VcpuBlock>, latencies: bool) -> Self {
        Self { block, latencies }
    }

    /// Counts what `KVM_RUN` has just returned.
    pub fn count(&self, exit: &Result<VcpuExit<'_>, Error>) -> Exit {
        let Some(block) = self.block else {
            return Exit { since_ns: None };
        };
        let since_ns = self.latencies.then(monotonic_ns);
        counter(block, exit).fetch_add(1, Ordering::Relaxed);
        Exit { since_ns }
    }

    /// Counts the time that it took to serve `exit`.
    pub fn served(&self, exit: Exit) {
        if let (Some(block), Some(since_ns)) = (self.block, exit.since_ns) {
            block
                .serving
                .record(monotonic_ns().saturating_sub(since_ns));
        }
    }
}

fn counter<'a>(block: &'a VcpuBlock, exit: &Result<VcpuExit<'_>, Error>) -> &'a AtomicU64 {
    match exit {
        Ok(VcpuExit::IoIn(..)) => &block.port_reads,
        Ok(VcpuExit::IoOut(..)) => &block.port_writes,
        Ok(VcpuExit::MmioRead(..)) => &block.mmio_reads,
        Ok(VcpuExit::MmioWrite(..)) => &block.mmio_writes,
        Ok(VcpuExit::Intr) => &block.interrupted,
        Err(error) if error.errno() == libc::EINTR => &block.interrupted,
        Err(error) if error.errno() == libc::EAGAIN => &block.refused,
        Ok(VcpuExit::IrqWindowOpen) => &block.other,
        // `kvm::vcpu` ends the microVM for each of the rest.
        Ok(_) | Err(_) => &block.ended,
    }
}
