//! virtio-blk (virtio 1.3, section 5.2).
//!
//! One queue: a machine has one event loop, and a device one interrupt, so more
//! would only share them. Sectors of 512 bytes and no topology: behind a disk is
//! the page cache, which takes any alignment.

mod request;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

use super::limiter::{Limiter, Limits};
use super::queues::{Chain, DeviceFault, Drained, Queues, Served, Taken};
use super::{VirtioDevice, read_config_bytes};
use crate::block::verified::Corrupt;
use crate::block::{BlockBackend, Operation, RESET_PATIENCE, Ticket};
use crate::event::{EventKind, EventSink, monotonic_ns};
use crate::memory::GuestMemory;
use crate::metrics::device::DeviceMetrics;
use request::{Command, Disk, Refusal, Request};

const QUEUE_SIZES: [u16; 1] = [256];
const SECTOR_BYTES: u64 = 512;
/// Data pieces in one request: a queue's worth less the header and the status.
const SEG_MAX: u32 = 254;
/// Bytes in one piece. A large transfer of contiguous memory has few then: with 64 KiB
/// reads in sequence were 3 to 7 % slower.
const SIZE_MAX: u32 = 256 << 10;
/// Data in one request, as a driver that keeps to both may ask for. More would
/// keep other devices waiting.
const REQUEST_MAX_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Ranges in one discard: as many as Linux makes use of at a time, roughly.
const MAX_DISCARD_SEGMENTS: u32 = 16;
/// Sectors in one of them: 1 GiB, which file systems forget quickly.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Linux never asks for more.
const MAX_WRITE_ZEROES_SEGMENTS: u32 = 1;
/// 8 MiB: some file systems can only write them.
const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 14;
/// A disk that is full is told of so often at most, however its guest fills it.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(60);

/// Offsets into `struct virtio_blk_config`.
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SIZE_MAX: usize = 8;
const CONFIG_SEG_MAX: usize = 12;
const CONFIG_MAX_DISCARD_SECTORS: usize = 36;
const CONFIG_MAX_DISCARD_SEGMENTS: usize = 40;
const CONFIG_DISCARD_ALIGNMENT: usize = 44;
const CONFIG_MAX_WRITE_ZEROES_SECTORS: usize = 48;
const CONFIG_MAX_WRITE_ZEROES_SEGMENTS: usize = 52;
const CONFIG_WRITE_ZEROES_MAY_UNMAP: usize = 56;
const CONFIG_BYTES: usize = 60;
/// A page, in sectors: smaller holes free nothing.
const DISCARD_ALIGNMENT: u32 = 8;

/// The device's identity, padded with zeroes.
pub type Serial = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// The device.
pub struct Block {
    name: String,
    serial: Serial,
    config: [u8; CONFIG_BYTES],
    backend: Box<dyn BlockBackend>,
    limiter: Limiter,
    events: Arc<EventSink>,
    /// What the driver has acknowledged.
    features: u64,
    /// A chain was left in the queue because too much is in flight.
    stalled: bool,
    /// What was in flight before a reset still is.
    unsettled: bool,
    full: Full,
    metrics: DeviceMetrics,
}

impl Block {
    /// A disk called `name` in events, that shows `backend` to the guest.
    pub fn new(
        name: String,
        serial: Serial,
        backend: Box<dyn BlockBackend>,
        limits: Limits,
        events: Arc<EventSink>,
    ) -> io::Result<Self> {
        let mut config = [0; CONFIG_BYTES];
        let capacity = backend.size_bytes() / SECTOR_BYTES;
        config[CONFIG_CAPACITY..][..8].copy_from_slice(&capacity.to_le_bytes());
        let mut numbers = vec![(CONFIG_SIZE_MAX, SIZE_MAX), (CONFIG_SEG_MAX, SEG_MAX)];
        if !backend.read_only() {
            numbers.extend([
                (CONFIG_MAX_DISCARD_SECTORS, MAX_DISCARD_SECTORS),
                (CONFIG_MAX_DISCARD_SEGMENTS, MAX_DISCARD_SEGMENTS),
                (CONFIG_DISCARD_ALIGNMENT, DISCARD_ALIGNMENT),
                (CONFIG_MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SECTORS),
                (CONFIG_MAX_WRITE_ZEROES_SEGMENTS, MAX_WRITE_ZEROES_SEGMENTS),
            ]);
            config[CONFIG_WRITE_ZEROES_MAY_UNMAP] = 1;
        }
        for (offset, number) in numbers {
            config[offset..][..4].copy_from_slice(&number.to_le_bytes());
        }
        Ok(Self {
            name,
            serial,
            config,
            backend,
            limiter: Limiter::new(limits)?,
            events,
            features: 0,
            stalled: false,
            unsettled: false,
            full: Full::default(),
            metrics: DeviceMetrics::default(),
        })
    }

    fn disk(&self) -> Disk {
        Disk {
            size_bytes: self.backend.size_bytes(),
            read_only: self.backend.read_only(),
            features: self.features,
        }
    }

    /// Serves one request, or begins to.
    fn take(&mut self, memory: &GuestMemory, chain: Chain) -> Result<Taken, DeviceFault> {
        if !self.backend.has_room() {
            self.stalled = true;
            return Ok(Taken::Refused);
        }
        let head = chain.head_index();
        let request = Request::parse(memory, chain)
            .map_err(|reason| DeviceFault::Chain { queue: 0, reason })?;
        let status = request.status;
        let asked = request.bytes();
        let command = request.command(memory, self.disk());
        let cost = cost(&command);
        // Zeroes do not come from the guest, but take as long to be written.
        let moved = asked.max(cost);
        if !self.limiter.admit(cost) {
            return Ok(Taken::Refused);
        }
        let result = match command {
            Ok(Command::Operation(operation)) => {
                let ticket = Ticket {
                    head,
                    status,
                    written: written(&operation),
                    writes: needs_storage(&operation),
                };
                self.count(&operation);
                match self.backend.start(ticket, operation) {
                    None => return Ok(Taken::Kept { moved }),
                    Some(result) => self.judge(ticket, &result),
                }
            }
            Ok(Command::Identity(address, length)) => {
                let identity = &self.serial[..length.min(self.serial.len())];
                memory
                    .write_slice(identity, address)
                    .map(|()| identity.len() as u32)
                    .map_err(|_| Refusal::Failed)
            }
            Err(refusal) => Err(refusal),
        };
        let written = answer(memory, status, result)?;
        Ok(Taken::Used(Served { written, moved }))
    }

    /// Counts what is asked for, whether or not it succeeds.
    fn count(&self, operation: &Operation) {
        match operation {
            Operation::Read(_, buffers) => self.metrics.to_guest(buffers.bytes()),
            Operation::Write(_, buffers) => self.metrics.from_guest(buffers.bytes()),
            _ => {}
        }
    }

    /// What the driver is told of what the backend has done.
    fn judge(&mut self, ticket: Ticket, result: &io::Result<()>) -> Result<u32, Refusal> {
        match result {
            Ok(()) => {
                if ticket.writes {
                    self.full.written();
                }
                Ok(ticket.written)
            }
            Err(error) => {
                self.tell_corruption(error);
                let full = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                if full && self.full.refused(monotonic_ns()) {
                    self.events.send(EventKind::DiskFull {
                        device: self.name.clone(),
                    });
                }
                Err(Refusal::Failed)
            }
        }
    }

    fn tell_corruption(&self, error: &io::Error) {
        let corrupt = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(corrupt @ Corrupt { first: true, .. }) = corrupt {
            self.events.send(EventKind::CorruptBlob {
                device: self.name.clone(),
                hash: corrupt.hash,
                span: Some(corrupt.span),
                reason: corrupt.to_string(),
            });
        }
    }

    /// Returns to the driver what has been in flight and is done.
    fn return_completed(&mut self, mut queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        // Each request in flight once: what is begun meanwhile has its own turn.
        let mut turns = usize::from(QUEUE_SIZES[0]);
        let mut used = false;
        while let Some((ticket, result)) = self.backend.complete() {
            let result = self.judge(ticket, &result);
            if let Some(queues) = queues.as_deref_mut() {
                let written = answer(queues.memory(), ticket.status, result)?;
                queues.push_used(0, ticket.head, written)?;
                used = true;
            }
            turns -= 1;
            if turns == 0 {
                self.backend.wake();
                break;
            }
        }
        match queues {
            Some(queues) if used => queues.notify(0),
            _ => Ok(()),
        }
    }

    fn serve(&mut self, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let memory = queues.memory();
        self.stalled = false;
        queues.take(0, |chain| self.take(memory, chain))
    }
}

/// The bytes that a limit on bandwidth counts: what passes between memory and
/// storage, and what may have to.
fn cost(command: &Result<Command, Refusal>) -> u64 {
    let Ok(Command::Operation(operation)) = command else {
        return 0;
    };
    match operation {
        Operation::Read(_, buffers) | Operation::Write(_, buffers) => buffers.bytes(),
        Operation::WriteZeroes { range, .. } => range.length,
        Operation::Flush | Operation::Discard(_) => 0,
    }
}

fn written(operation: &Operation) -> u32 {
    match operation {
        // At most REQUEST_MAX_BYTES.
        Operation::Read(_, buffers) => buffers.bytes() as u32,
        _ => 0,
    }
}

fn needs_storage(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Write(..) | Operation::WriteZeroes { .. }
    )
}

/// Writes the status byte; returns how many bytes were written with it.
fn answer(
    memory: &GuestMemory,
    address: vm_memory::GuestAddress,
    result: Result<u32, Refusal>,
) -> Result<u32, DeviceFault> {
    let (status, written) = match result {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(Refusal::Failed) => (VIRTIO_BLK_S_IOERR, 0),
    };
    memory
        .write_obj(status as u8, address)
        .map_err(|_| DeviceFault::Chain {
            queue: 0,
            reason: "the status byte lies outside guest memory",
        })?;
    Ok(written + 1)
}

/// Whether the host's storage was full when it was needed last.
#[derive(Debug, Default)]
struct Full {
    full: bool,
    told_ns: Option<u64>,
}

impl Full {
    /// A write was refused for want of room; returns whether to tell.
    fn refused(&mut self, now_ns: u64) -> bool {
        let pause = DISK_FULL_PAUSE.as_nanos() as u64;
        let recently = self
            .told_ns
            .is_some_and(|told| now_ns.saturating_sub(told) < pause);
        if std::mem::replace(&mut self.full, true) || recently {
            return false;
        }
        self.told_ns = Some(now_ns);
        true
    }

    fn written(&mut self) {
        self.full = false;
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let more = match self.backend.read_only() {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | more
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn share_metrics(&mut self, metrics: DeviceMetrics) -> bool {
        self.metrics = metrics;
        true
    }

    fn process_queue(
        &mut self,
        _index: usize,
        queues: &mut Queues,
    ) -> Result<Drained, DeviceFault> {
        let result = self.serve(queues);
        self.backend.submit();
        result
    }

    fn reset(&mut self) {
        // Whatever is in flight ends before its memory is the driver's again.
        self.unsettled = !self.backend.wait(RESET_PATIENCE);
        self.features = 0;
        self.stalled = false;
    }

    fn queue_taken_away(&mut self, _index: usize) {
        self.unsettled = !self.backend.wait(RESET_PATIENCE);
    }

    fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        self.backend.completions()
    }

    fn process_backend(&mut self, mut queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        self.backend.acknowledge();
        if self.unsettled {
            self.unsettled = !self.backend.wait(Duration::ZERO);
            return Ok(());
        }
        let returned = self.return_completed(queues.as_deref_mut());
        let served = match queues {
            Some(queues) if self.stalled && returned.is_ok() => self.serve(queues),
            _ => Ok(Drained::Empty),
        };
        self.backend.submit();
        returned?;
        if served? == Drained::Again {
            self.stalled = true;
            self.backend.wake();
        }
        Ok(())
    }

    fn limiters(&mut self) -> &mut [Limiter] {
        std::slice::from_mut(&mut self.limiter)
    }
}

#[cfg(test)]
mod tests;
