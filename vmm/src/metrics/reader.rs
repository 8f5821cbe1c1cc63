//! The agent's side: reads the page of a VMM that may run, be dead, or be hostile.
//!
//! Nothing that stands in the page is believed: numbers are only numbers, counts of
//! blocks are bounded by what the page holds, names are made printable. The file is
//! mapped only if it cannot shrink, so no access can fail.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde::{Serialize, Serializer};

use super::histogram::{BUCKETS, Histogram};
use super::layout::{DEVICE_BLOCKS, DeviceBlock, MAGIC, Page, VCPU_BLOCKS, VERSION, VcpuBlock};

/// Why there is nothing to read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Another file, or one that could shrink under its readers.
    #[error(
        "the file is no page of metrics: it must be a memfd of {} bytes, sealed against shrinking and growing",
        super::FILE_BYTES
    )]
    NotAPage,
    /// mmap(2) was refused.
    #[error("cannot map the page of metrics")]
    Map(#[source] io::Error),
    /// The VMM has not got that far.
    #[error("the VMM has written no metrics yet")]
    NotReady,
    /// It is something else.
    #[error("the page of metrics begins with {0:#x}, which is not its magic number")]
    Magic(u64),
    /// Another version of the layout.
    #[error("the page of metrics has version {0}, not {VERSION}")]
    Version(u64),
    /// More blocks than fit.
    #[error("the page of metrics tells of {found} {what}, it has room for {room}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many it says there are.
        found: u64,
        /// How many fit.
        room: usize,
    },
}

/// A page that is mapped for reading.
#[derive(Debug)]
pub struct Reader {
    page: NonNull<Page>,
}

// SAFETY: the mapping belongs to no thread, and is only read, by atomic loads.
unsafe impl Send for Reader {}

/// What was counted up to a moment. Numbers that were read one after another: the
/// guest may have gone on in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Whether times are measured; else all histograms are empty.
    pub latencies: bool,
    /// In order.
    pub vcpus: Vec<VcpuCounts>,
    /// In the order they were added.
    pub devices: Vec<DeviceCounts>,
}

/// Of [`VcpuBlock`], where its fields are explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the same names as in the block")]
pub struct VcpuCounts {
    pub port_reads: u64,
    pub port_writes: u64,
    pub mmio_reads: u64,
    pub mmio_writes: u64,
    pub interrupted: u64,
    pub refused: u64,
    pub ended: u64,
    pub other: u64,
    pub serving: Times,
}

/// Of [`DeviceBlock`], where its fields are explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the same names as in the block")]
pub struct DeviceCounts {
    pub name: String,
    pub kind: u64,
    pub doorbells: u64,
    pub queue_runs: u64,
    pub chains: u64,
    pub bytes_to_guest: u64,
    pub bytes_from_guest: u64,
    pub interrupts: u64,
    pub faults: u64,
    pub resets: u64,
    pub limit_waits: u64,
    pub service: Times,
}

/// Of [`Histogram`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Times {
    /// The sum of all, in nanoseconds.
    pub sum_ns: u64,
    /// Bucket `n` counts times of 2ⁿ to 2ⁿ⁺¹ − 1 nanoseconds.
    #[serde(serialize_with = "as_list")]
    pub buckets: [u64; BUCKETS],
}

fn as_list<S: Serializer>(buckets: &[u64; BUCKETS], serializer: S) -> Result<S::Ok, S::Error> {
    buckets.as_slice().serialize(serializer)
}

impl Reader {
    /// Maps `file`, which is open for reading.
    pub fn new(file: &File) -> Result<Self, ReadError> {
        if !super::is_page(file) {
            return Err(ReadError::NotAPage);
        }
        let length = size_of::<Page>();
        let flags = MapFlags::SHARED;
        // SAFETY: a new mapping where the kernel likes, which changes no other.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                flags,
                file.as_fd(),
                0,
            )
        };
        let address = address.map_err(|errno| ReadError::Map(errno.into()))?;
        let page = NonNull::new(address.cast());
        let page = page.ok_or_else(|| ReadError::Map(io::ErrorKind::Other.into()))?;
        Ok(Self { page })
    }

    /// Reads what is there now.
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        // SAFETY: the mapping has the size of a `Page` and lasts as long as this; its
        // file cannot shrink. It begins on a memory page, to which a `Page` is aligned.
        // Any bytes are valid atomics, whoever writes them meanwhile. They are only
        // read, by relaxed loads of 64 bits, which memory that is mapped read-only
        // bears (std::sync::atomic, "Atomic accesses to read-only memory").
        let page = unsafe { self.page.as_ref() };
        read(page)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, of that size; nobody borrows from it, as
        // all borrows end with this.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), size_of::<Page>()) };
    }
}

/// What `page` says, if that is something.
pub(super) fn read(page: &Page) -> Result<Snapshot, ReadError> {
    let header = &page.header;
    match load(&header.magic) {
        MAGIC => fence(Ordering::Acquire),
        0 => return Err(ReadError::NotReady),
        other => return Err(ReadError::Magic(other)),
    }
    match load(&header.version) {
        VERSION => {}
        other => return Err(ReadError::Version(other)),
    }
    let vcpus = count("vCPUs", &header.vcpus, VCPU_BLOCKS)?;
    let devices = count("devices", &header.devices, DEVICE_BLOCKS)?;
    Ok(Snapshot {
        latencies: load(&header.latencies) == 1,
        vcpus: page.vcpus.iter().take(vcpus).map(vcpu).collect(),
        devices: page.devices.iter().take(devices).map(device).collect(),
    })
}

fn load(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

fn count(what: &'static str, number: &AtomicU64, room: usize) -> Result<usize, ReadError> {
    let found = load(number);
    match usize::try_from(found) {
        Ok(count) if count <= room => Ok(count),
        _ => Err(ReadError::Count { what, found, room }),
    }
}

fn vcpu(block: &VcpuBlock) -> VcpuCounts {
    VcpuCounts {
        port_reads: load(&block.port_reads),
        port_writes: load(&block.port_writes),
        mmio_reads: load(&block.mmio_reads),
        mmio_writes: load(&block.mmio_writes),
        interrupted: load(&block.interrupted),
        refused: load(&block.refused),
        ended: load(&block.ended),
        other: load(&block.other),
        serving: times(&block.serving),
    }
}

fn device(block: &DeviceBlock) -> DeviceCounts {
    DeviceCounts {
        name: name(block),
        kind: load(&block.kind),
        doorbells: load(&block.doorbells),
        queue_runs: load(&block.queue_runs),
        chains: load(&block.chains),
        bytes_to_guest: load(&block.bytes_to_guest),
        bytes_from_guest: load(&block.bytes_from_guest),
        interrupts: load(&block.interrupts),
        faults: load(&block.faults),
        resets: load(&block.resets),
        limit_waits: load(&block.limit_waits),
        service: times(&block.service),
    }
}

fn name(block: &DeviceBlock) -> String {
    let bytes = block.name.iter().flat_map(|word| load(word).to_le_bytes());
    let bytes = bytes.take_while(|byte| *byte != 0);
    bytes
        .map(|byte| match byte {
            b'!'..=b'~' => char::from(byte),
            _ => '?',
        })
        .collect()
}

fn times(histogram: &Histogram) -> Times {
    Times {
        sum_ns: load(&histogram.sum_ns),
        buckets: std::array::from_fn(|index| load(&histogram.buckets[index])),
    }
}

impl VcpuCounts {
    /// How often the vCPU left KVM, for whatever reason.
    pub fn exits(&self) -> u64 {
        let all = [
            self.port_reads,
            self.port_writes,
            self.mmio_reads,
            self.mmio_writes,
            self.interrupted,
            self.refused,
            self.ended,
            self.other,
        ];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

impl Times {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().copied().fold(0, u64::saturating_add)
    }

    /// A time in nanoseconds that `percent` of all, 0 to 100, do not exceed: the end of
    /// a bucket, so at most twice as long as need be. `None` where there are none.
    pub fn percentile(&self, percent: u8) -> Option<u64> {
        let count = u128::from(self.count());
        let wanted = (count * u128::from(percent.min(100))).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, number) in self.buckets.iter().zip(0..) {
            seen += u128::from(*bucket);
            if seen >= wanted {
                return Some((2_u64 << number) - 1);
            }
        }
        None
    }
}
