//! What stands where in the page. Version 1; all numbers are 64 bits wide and
//! little-endian, as this architecture has them.
//!
//! Each block has one writer, or writers that seldom meet, and begins on a pair of
//! cache lines of its own.

use std::sync::atomic::AtomicU64;

use super::histogram::Histogram;
use crate::arch::layout::MAX_DEVICES;
use crate::config::MAX_VCPUS;

/// "MOTEMETR", little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"MOTEMETR");
/// Another number after any change that a reader of this one would misread.
pub const VERSION: u64 = 1;
/// The size of a block; what is not used in it is zero.
pub const BLOCK_BYTES: usize = 512;
/// How many bytes a device's name has, zeroes after its end.
pub const NAME_BYTES: usize = 16;

/// The number of blocks for vCPUs.
pub const VCPU_BLOCKS: usize = MAX_VCPUS as usize;
/// The number of blocks for devices: more than there are interrupts for.
pub const DEVICE_BLOCKS: usize = 31;

/// All of it.
#[derive(Debug)]
#[repr(C)]
pub struct Page {
    /// What the rest is.
    pub header: Header,
    /// The first [`Header::vcpus`] are used.
    pub vcpus: [VcpuBlock; VCPU_BLOCKS],
    /// The first [`Header::devices`] are used.
    pub devices: [DeviceBlock; DEVICE_BLOCKS],
}

/// Written once, before the guest runs.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct Header {
    /// [`MAGIC`], written last: zero until the rest may be read.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU64,
    /// The number of vCPUs.
    pub vcpus: AtomicU64,
    /// The number of virtio devices.
    pub devices: AtomicU64,
    /// 1 if times are measured, 0 if all histograms stay empty.
    pub latencies: AtomicU64,
}

/// What one vCPU left the guest for, if it left KVM for it. Its thread writes it.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct VcpuBlock {
    /// `KVM_EXIT_IO`, in.
    pub port_reads: AtomicU64,
    /// `KVM_EXIT_IO`, out.
    pub port_writes: AtomicU64,
    /// `KVM_EXIT_MMIO`, read.
    pub mmio_reads: AtomicU64,
    /// `KVM_EXIT_MMIO`, written.
    pub mmio_writes: AtomicU64,
    /// A signal: the vCPU was to leave the guest (`EINTR`, `KVM_EXIT_INTR`).
    pub interrupted: AtomicU64,
    /// KVM asked to be called again (`EAGAIN`).
    pub refused: AtomicU64,
    /// What ends a microVM: `KVM_EXIT_SHUTDOWN`, `KVM_EXIT_SYSTEM_EVENT` and failures.
    pub ended: AtomicU64,
    /// Anything else.
    pub other: AtomicU64,
    /// The time from the return of `KVM_RUN` until the access was served, for reads
    /// and writes.
    pub serving: Histogram,
}

/// What one virtio device has done. The event loop writes it, and now and then a
/// vCPU's thread.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct DeviceBlock {
    /// ASCII, zeroes after its end.
    pub name: [AtomicU64; NAME_BYTES / 8],
    /// The device type of virtio 1.3, section 5.
    pub kind: AtomicU64,
    /// How often the driver rang a doorbell.
    pub doorbells: AtomicU64,
    /// How often a queue was looked at, for a doorbell or for other reasons.
    pub queue_runs: AtomicU64,
    /// Chains of descriptors returned to the driver: requests, packets, buffers.
    pub chains: AtomicU64,
    /// Bytes moved into the guest's memory.
    pub bytes_to_guest: AtomicU64,
    /// Bytes moved out of it.
    pub bytes_from_guest: AtomicU64,
    /// Interrupts raised.
    pub interrupts: AtomicU64,
    /// How often it refused what the driver did (`DEVICE_NEEDS_RESET`).
    pub faults: AtomicU64,
    /// How often the driver reset it.
    pub resets: AtomicU64,
    /// How often requests waited for a limit.
    pub limit_waits: AtomicU64,
    /// The time from taking a request until it is returned.
    pub service: Histogram,
}

const _: () = {
    assert!(size_of::<Header>() == BLOCK_BYTES);
    assert!(size_of::<VcpuBlock>() == BLOCK_BYTES);
    assert!(size_of::<DeviceBlock>() == BLOCK_BYTES);
    assert!(size_of::<Page>() == 32 << 10);
    assert!(MAX_DEVICES <= DEVICE_BLOCKS);
    assert!(cfg!(target_endian = "little"));
};
