//! What a `mote-vmm` may use of the host: as much as its microVM can make it need,
//! and no more.

use jail::{CgroupLimits, Limits};
use outboard::{BLOCK_BYTES, GROUP_BYTES};

use crate::arch::layout;
use crate::metrics::FILE_BYTES;
use crate::spec::{Descriptor, DiskSpec, VmSpec};

/// The program, its heap, rings and tables: what does not grow with the guest.
const PROGRAM_BYTES: u64 = 64 << 20;
/// A stack, its guard pages and what KVM shares with the thread.
const THREAD_BYTES: u64 = 4 << 20;
/// The streams of vsock at their fullest: 256 of 256 KiB.
const VSOCK_BYTES: u64 = 64 << 20;
/// Where a region of guest memory may begin: at the next huge page.
const REGION_MARGIN_BYTES: u64 = 2 << 21;
/// What the kernel keeps for a guest beside its page tables, and the page cache of
/// its disks.
const HOST_BYTES: u64 = 64 << 20;
/// Descriptors the VMM makes for itself at its start, and for each device.
const PROGRAM_DESCRIPTORS: u64 = 32;
const DEVICE_DESCRIPTORS: u64 = 8;
/// KVM's own, which splits huge pages where a processor needs that: it is made when
/// the first vCPU runs.
const KVM_THREADS: u64 = 1;
/// The kernel's, for requests of disks that must wait: as many as the rings are
/// allowed, all together.
const RING_THREADS: u64 = 5;
/// A ring with room for 256 requests, its tables and those of its files.
const RING_BYTES: u64 = 256 << 10;
/// Where a disk's blobs are verified, at its fullest, with the nodes of its hash trees
/// and what the allocator loses.
const VERIFICATION_BYTES: u64 = 4 << 20;
/// One for each stream, and two for one on its way to the agent.
const VSOCK_DESCRIPTORS: u64 = 258;

/// The limits of the process that runs `spec`, to which descriptors up to
/// `greatest` are passed. Files it writes to are disks and guest memory; a console that goes to a
/// file, not a pipe, needs a higher [`Limits::file_size_bytes`].
pub fn of(spec: &VmSpec, greatest: Descriptor) -> Limits {
    let vcpus = u64::from(spec.vcpus);
    let devices =
        (spec.disks.len() + spec.consoles.len() + spec.pmem.len() + spec.filesystems.len()) as u64
            + 4;
    let taps: u64 = spec.nics.iter().map(|nic| nic.taps.len() as u64).sum();
    let vsock_descriptors = match spec.vsock {
        Some(_) => VSOCK_DESCRIPTORS,
        None => 0,
    };
    let written = spec.disks.iter().filter(|disk| !disk.read_only);
    let ends = written.flat_map(|disk| &disk.extents);
    let ends = ends.map(|extent| extent.offset_bytes.saturating_add(extent.length_bytes));
    Limits {
        address_space_bytes: spec
            .memory_bytes
            .saturating_add(2 * REGION_MARGIN_BYTES)
            .saturating_add(pmem_bytes(spec))
            .saturating_add(metrics_bytes(spec))
            .saturating_add(vsock_bytes(spec))
            .saturating_add(verification_bytes(spec))
            .saturating_add(PROGRAM_BYTES + vcpus.saturating_mul(THREAD_BYTES)),
        locked_memory_bytes: RING_BYTES * rings(spec),
        file_size_bytes: ends.max().unwrap_or(0).max(memory_file_bytes(spec)),
        descriptors: u64::try_from(greatest).unwrap_or(0)
            + 1
            + PROGRAM_DESCRIPTORS
            + DEVICE_DESCRIPTORS * (devices + taps + spec.nics.len() as u64)
            + vsock_descriptors,
        threads: threads(spec),
    }
}

/// The limits of its cgroup, which bound what the kernel does for it too.
pub fn of_cgroup(spec: &VmSpec) -> CgroupLimits {
    CgroupLimits {
        // One for the devices.
        cpus: u64::from(spec.vcpus) + 1,
        // Page tables take a two hundredth of what they map, or less.
        memory_bytes: spec
            .memory_bytes
            .saturating_add(spec.memory_bytes / 64)
            .saturating_add(pmem_bytes(spec) / 64)
            .saturating_add(vsock_bytes(spec))
            .saturating_add(verification_bytes(spec))
            .saturating_add(HOST_BYTES),
        threads: threads(spec),
        // Which disks of the host are behind its files is not in the spec.
        io: Vec::new(),
    }
}

fn vsock_bytes(spec: &VmSpec) -> u64 {
    match spec.vsock {
        Some(_) => VSOCK_BYTES,
        None => 0,
    }
}

/// For each disk of blobs, and a bit for each block and each group of these.
fn verification_bytes(spec: &VmSpec) -> u64 {
    let blobs = |disk: &DiskSpec| {
        let blobs = disk.extents.iter().filter(|extent| extent.blob.is_some());
        let bytes = blobs.fold(0_u64, |sum, blob| sum.saturating_add(blob.length_bytes));
        let bits = bytes / BLOCK_BYTES + bytes / GROUP_BYTES;
        (bytes > 0).then_some(VERIFICATION_BYTES + bits / 8)
    };
    spec.disks.iter().filter_map(blobs).sum()
}

fn threads(spec: &VmSpec) -> u64 {
    let rings = match rings(spec) {
        0 => 0,
        _ => RING_THREADS,
    };
    let vhost: u64 = spec.nics.iter().map(|nic| nic.vhost.len() as u64).sum();
    1 + u64::from(spec.vcpus) + KVM_THREADS + rings + vhost
}

/// The size of the file that guest memory is in where others have it too.
fn memory_file_bytes(spec: &VmSpec) -> u64 {
    match spec.filesystems.is_empty() {
        true => 0,
        false => spec.memory_bytes,
    }
}

/// Address space for files, each from the next huge page to the end of its last.
fn pmem_bytes(spec: &VmSpec) -> u64 {
    let lengths = spec.pmem.iter().map(|pmem| pmem.length_bytes);
    lengths.fold(0_u64, |sum, length| {
        sum.saturating_add(length)
            .saturating_add(2 * layout::PMEM_ALIGNMENT)
    })
}

/// Address space for what is shared with the agent.
fn metrics_bytes(spec: &VmSpec) -> u64 {
    spec.metrics.map_or(0, |_| FILE_BYTES)
}

/// Disks have one each, and so has persistent memory that is written.
fn rings(spec: &VmSpec) -> u64 {
    let written = spec.pmem.iter().filter(|pmem| !pmem.read_only);
    (spec.disks.len() + written.count()) as u64
}
