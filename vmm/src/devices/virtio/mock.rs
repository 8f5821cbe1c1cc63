//! A driver for unit tests and fuzzing: it reaches a device through its registers and through
//! guest memory, as a guest does, and says exactly what it is told to.

pub mod acts;
#[cfg(test)]
pub mod hostile;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::mmio::{MmioTransport, register};
use crate::bus::BusDevice;
use crate::event::{Event, EventKind, EventSink};
use crate::memory::{self, GuestMemory};

pub const MEMORY_BYTES: u64 = 1 << 20;
/// From here on memory is free for buffers.
pub const BUFFERS: u64 = 0x4_0000;
pub const QUEUE_SIZE: u16 = 16;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_INDEX: u64 = 1 << 29;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// What has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each queue has a page for descriptors, one for the driver area and one for the
/// device area.
const QUEUE_BYTES: u64 = 0x3000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// `struct virtq_desc`.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// The driver.
pub struct MockDriver {
    pub transport: Arc<MmioTransport>,
    pub memory: GuestMemory,
    events: File,
    queues: Vec<Progress>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    available: u16,
    used: u16,
}

impl MockDriver {
    /// A driver for `device`, which it has not touched yet.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::with_events(|_| device)
    }

    /// A driver for a device that sends events of its own.
    pub fn with_events<D: VirtioDevice + 'static>(make: impl FnOnce(Arc<EventSink>) -> D) -> Self {
        Self::in_memory(memory::create(MEMORY_BYTES).unwrap(), make)
    }

    /// The same in memory that is there already and zeroed, [`MEMORY_BYTES`] of it:
    /// guest memory stays mapped for ever, so who makes many drivers makes it once.
    pub fn in_memory<D: VirtioDevice + 'static>(
        memory: GuestMemory,
        make: impl FnOnce(Arc<EventSink>) -> D,
    ) -> Self {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let events = File::from(rustix::fs::memfd_create("events", flags).unwrap());
        let sink = Arc::new(EventSink::new(Some(events.try_clone().unwrap())));
        let device = make(Arc::clone(&sink));
        let queues = vec![Progress::default(); device.queue_sizes().len()];
        let transport = MmioTransport::new(Box::new(device), memory.clone(), sink).unwrap();
        Self {
            transport,
            memory,
            events,
            queues,
        }
    }

    /// A driver for `device`, reset and started with every queue.
    pub fn started(device: impl VirtioDevice + 'static) -> Self {
        let mut driver = Self::new(device);
        driver.start(VERSION_1);
        driver
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    pub fn add_status(&self, bits: u32) {
        self.write(register::STATUS, self.status() | bits);
    }

    pub fn needs_reset(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    pub fn reset(&mut self) {
        self.write(register::STATUS, 0);
        self.queues.fill(Progress::default());
    }

    /// Accepts `features`; returns whether the device agrees.
    pub fn negotiate(&self, features: u64) -> bool {
        self.add_status(ACKNOWLEDGE | DRIVER);
        for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, value);
        }
        self.add_status(FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    pub fn place_queue(&self, index: u32, size: u32, addresses: [u64; 3]) {
        self.write(register::QUEUE_SEL, index);
        self.write(register::QUEUE_SIZE, size);
        let low_registers = [
            register::QUEUE_DESC_LOW,
            register::QUEUE_DRIVER_LOW,
            register::QUEUE_DEVICE_LOW,
        ];
        for (low, address) in low_registers.into_iter().zip(addresses) {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
    }

    /// Where this driver has queue `index`: descriptors, driver and device area.
    pub fn queue_addresses(index: usize) -> [u64; 3] {
        let start = index as u64 * QUEUE_BYTES;
        [start, start + AVAILABLE, start + USED]
    }

    /// Resets the device and starts it with `features` and every queue.
    pub fn start(&mut self, features: u64) {
        self.reset();
        assert!(self.negotiate(features));
        for index in 0..self.queues.len() {
            let [start, ..] = Self::queue_addresses(index);
            let zeroes = [0; QUEUE_BYTES as usize];
            self.memory
                .write_slice(&zeroes, GuestAddress(start))
                .unwrap();
            let addresses = Self::queue_addresses(index);
            let size = QUEUE_SIZE.into();
            self.place_queue(index as u32, size, addresses);
        }
        self.add_status(DRIVER_OK);
    }

    pub fn describe(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let [table, ..] = Self::queue_addresses(queue);
        self.describe_at(table + u64::from(index) * 16, descriptor);
    }

    /// Writes a descriptor to any address.
    pub fn describe_at(&self, at: u64, descriptor: Descriptor) {
        let at = GuestAddress(at);
        let Descriptor {
            address,
            length,
            flags,
            next,
        } = descriptor;
        self.memory.write_obj(address, at).unwrap();
        self.memory
            .write_obj(length, GuestAddress(at.0 + 8))
            .unwrap();
        self.memory
            .write_obj(flags, GuestAddress(at.0 + 12))
            .unwrap();
        self.memory
            .write_obj(next, GuestAddress(at.0 + 14))
            .unwrap();
    }

    /// Makes the chain that starts at `head` available, without telling.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let [_, available, _] = Self::queue_addresses(queue);
        let progress = &mut self.queues[queue];
        let slot = u64::from(progress.available % QUEUE_SIZE);
        progress.available = progress.available.wrapping_add(1);
        let index = progress.available;
        self.memory
            .write_obj(head, GuestAddress(available + 4 + slot * 2))
            .unwrap();
        self.set_available(queue, index);
    }

    /// Sets the available index to anything.
    pub fn set_available(&self, queue: usize, index: u16) {
        let [_, available, _] = Self::queue_addresses(queue);
        self.memory
            .write_obj(index, GuestAddress(available + 2))
            .unwrap();
    }

    /// Makes one chain available, from descriptor `first` on: address, length,
    /// [`WRITE`] or not.
    pub fn submit_at(&mut self, queue: usize, first: u16, pieces: &[(u64, u32, u16)]) {
        for (&(address, length, flags), index) in pieces.iter().zip(first..) {
            let last = usize::from(index - first) + 1 == pieces.len();
            let flags = if last { flags } else { flags | NEXT };
            let next = if last { 0 } else { index + 1 };
            let descriptor = Descriptor {
                address,
                length,
                flags,
                next,
            };
            self.describe(queue, index, descriptor);
        }
        self.offer(queue, first);
    }

    /// Makes one chain available and rings its doorbell.
    pub fn submit(&mut self, queue: usize, pieces: &[(u64, u32, u16)]) {
        self.submit_at(queue, 0, pieces);
        self.transport.process_queue(queue);
    }

    /// What was returned since this was asked last: heads and lengths.
    pub fn take_used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let [_, _, used] = Self::queue_addresses(queue);
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let progress = &mut self.queues[queue];
        let mut taken = Vec::new();
        while progress.used != index {
            let at = used + 4 + u64::from(progress.used % QUEUE_SIZE) * 8;
            let head = self.memory.read_obj(GuestAddress(at)).unwrap();
            let length = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            taken.push((head, length));
            progress.used = progress.used.wrapping_add(1);
        }
        taken
    }

    /// Whether the device has raised its interrupt; acknowledges it.
    pub fn take_interrupt(&self) -> u32 {
        let status = self.read(register::INTERRUPT_STATUS);
        self.write(register::INTERRUPT_ACK, status);
        status
    }

    /// All events so far.
    pub fn events(&mut self) -> Vec<EventKind> {
        let mut text = String::new();
        self.events.rewind().unwrap();
        self.events.read_to_string(&mut text).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Event>(line).unwrap().kind)
            .collect()
    }

    /// The reasons of all faults so far.
    pub fn faults(&mut self) -> Vec<String> {
        self.events()
            .into_iter()
            .map(|event| match event {
                EventKind::DeviceFault { reason, .. } => reason,
                other => panic!("{other:?} from a device"),
            })
            .collect()
    }

    /// Does what the event loop does, until `count` more chains of `queue` were
    /// returned; returns them.
    pub fn wait_for_used(&mut self, queue: usize, count: usize) -> Vec<(u32, u32)> {
        let mut taken = self.take_used(queue);
        while taken.len() < count {
            assert!(!self.needs_reset(), "{:?}", self.events());
            self.wait_for_event();
            taken.extend(self.take_used(queue));
        }
        taken
    }

    /// Waits for the device's backend or its timer, and lets the device look.
    pub fn wait_for_event(&self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let numbers = [self.transport.backend(), self.transport.timer()];
        let mut watched: Vec<_> = numbers
            .into_iter()
            .flatten()
            .map(|number| {
                // SAFETY: open for as long as the device lives, which `self` holds.
                let fd = unsafe { BorrowedFd::borrow_raw(number) };
                PollFd::from_borrowed_fd(fd, PollFlags::IN)
            })
            .collect();
        let patience = Timespec::try_from(PATIENCE).unwrap();
        assert!(poll(&mut watched, Some(&patience)).unwrap() > 0, "no event");
        let timer_only = self.transport.backend().is_none();
        let last = watched.len() - 1;
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        if !timer_only && ready[0] {
            self.transport.process_backend();
        }
        if self.transport.timer().is_some() && ready[last] {
            self.transport.process_timer();
        }
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
}
