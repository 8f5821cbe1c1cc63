//! A driver that does exactly what it is told, sensible or not.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use crate::mmio;
use crate::virtio::{self, Window};

/// Register offsets (virtio 1.3, section 4.2.2).
pub mod register {
    #![allow(missing_docs)]
    pub const DRIVER_FEATURES: usize = 0x020;
    pub const DRIVER_FEATURES_SEL: usize = 0x024;
    pub const QUEUE_SEL: usize = 0x030;
    pub const QUEUE_SIZE_MAX: usize = 0x034;
    pub const QUEUE_SIZE: usize = 0x038;
    pub const QUEUE_READY: usize = 0x044;
    pub const QUEUE_NOTIFY: usize = 0x050;
    pub const STATUS: usize = 0x070;
    pub const QUEUE_DESC_LOW: usize = 0x080;
    pub const QUEUE_DRIVER_LOW: usize = 0x090;
    pub const QUEUE_DEVICE_LOW: usize = 0x0a0;
}

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

/// The feature bits of rings that this driver takes: VERSION_1 and
/// INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 28;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Descriptors in a queue; small, so that whatever exceeds it is quickly made.
pub const QUEUE_SIZE: u16 = 16;

/// A split virtqueue in this guest's memory: a page for each of its parts.
pub struct Ring {
    descriptors: *mut Descriptor,
    available: *mut u16,
    used: *mut u16,
    next_available: u16,
}

/// `struct virtq_desc`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Descriptor {
    /// Where the buffer is.
    pub address: u64,
    /// How long it is.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next descriptor, with [`NEXT`].
    pub next: u16,
}

impl Ring {
    /// A queue without anything in it.
    pub fn new() -> Self {
        let page = || virtio::pages(1).as_ptr();
        Self {
            descriptors: page().cast(),
            available: page().cast(),
            used: page().cast(),
            next_available: 0,
        }
    }

    /// The three addresses: descriptors, driver area, device area.
    pub fn addresses(&self) -> [u64; 3] {
        [
            self.descriptors as u64,
            self.available as u64,
            self.used as u64,
        ]
    }

    /// Writes a descriptor, at an index that may be past the queue's size.
    pub fn describe(&mut self, index: u16, descriptor: Descriptor) {
        assert!(index < 256, "a page holds 256 descriptors");
        // SAFETY: the page is this ring's (`new`) and the index is inside.
        unsafe {
            self.descriptors
                .wrapping_add(index.into())
                .write_volatile(descriptor)
        };
    }

    /// Writes descriptors from `first` on that form a chain: address, length and
    /// [`WRITE`] or not.
    pub fn describe_chain(&mut self, first: u16, pieces: &[(u64, u32, u16)]) {
        for (&(address, length, flags), index) in pieces.iter().zip(first..) {
            let last = usize::from(index - first) + 1 == pieces.len();
            let descriptor = Descriptor {
                address,
                length,
                flags: if last { flags } else { flags | NEXT },
                next: if last { 0 } else { index + 1 },
            };
            self.describe(index, descriptor);
        }
    }

    /// Makes the chain that starts at `head` available, without telling.
    pub fn offer(&mut self, head: u16) {
        let slot = usize::from(self.next_available % QUEUE_SIZE);
        // SAFETY: flags, index and ring fit the page.
        unsafe { self.available.wrapping_add(2 + slot).write_volatile(head) };
        self.set_available(self.next_available.wrapping_add(1));
    }

    /// Sets the available index to anything.
    pub fn set_available(&mut self, index: u16) {
        self.next_available = index;
        fence(Ordering::SeqCst);
        // SAFETY: the index is the second word of the page.
        unsafe { self.available.wrapping_add(1).write_volatile(index) };
        fence(Ordering::SeqCst);
    }

    /// How many chains the device has returned, modulo 2¹⁶.
    pub fn used_index(&self) -> u16 {
        fence(Ordering::SeqCst);
        // SAFETY: the index is the second word of the page.
        unsafe { self.used.wrapping_add(1).read_volatile() }
    }

    /// Head and length of the used element at `slot`.
    pub fn used(&self, slot: u16) -> (u32, u32) {
        // Elements of head and length follow flags and index.
        let offset = 4 + 8 * usize::from(slot % QUEUE_SIZE);
        let element = self.used.wrapping_byte_add(offset).cast::<u32>();
        // SAFETY: all elements lie on the page and are aligned to four bytes.
        let head = unsafe { element.read_volatile() };
        // SAFETY: as above.
        let length = unsafe { element.wrapping_add(1).read_volatile() };
        (head, length)
    }

    /// Whether all that was offered was returned.
    pub fn all_returned(&self) -> bool {
        self.used_index() == self.next_available
    }
}

/// A device, driven by hand.
pub struct Device {
    /// Its registers.
    pub window: Window,
    /// Its queues.
    pub rings: Vec<Ring>,
    /// A page to do with as one likes.
    pub scratch: *mut u8,
}

impl Device {
    /// The device behind `window`, not touched yet.
    pub fn new(window: Window) -> Self {
        Self {
            window,
            rings: Vec::new(),
            scratch: virtio::pages(1).as_ptr(),
        }
    }

    /// The device behind `window`, reset and started with `queues` queues.
    pub fn started(window: Window, queues: usize) -> Self {
        let mut device = Self::new(window);
        device.start(queues);
        device
    }

    /// Reads a register.
    pub fn read(&self, register: usize) -> u32 {
        mmio::read(self.window.address + register)
    }

    /// Writes a register.
    pub fn write(&self, register: usize, value: u32) {
        mmio::write(self.window.address + register, value);
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    /// Whether the device asks for reset.
    pub fn needs_reset(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    /// Sets bits of the status register.
    pub fn add_status(&self, bits: u32) {
        self.write(register::STATUS, self.status() | bits);
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.write(register::STATUS, 0);
        while self.status() != 0 {}
        self.rings.clear();
    }

    /// Accepts `features` and says so; whether the device agrees is another
    /// matter.
    pub fn negotiate(&self, features: u64) {
        self.add_status(ACKNOWLEDGE | DRIVER);
        for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, value);
        }
        self.add_status(FEATURES_OK);
    }

    /// Tells the device of a queue at `addresses`.
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

    /// Resets the device and starts it with `queues` queues.
    pub fn start(&mut self, queues: usize) {
        self.start_with(queues, 0);
    }

    /// The same, with `features` of the device's own.
    pub fn start_with(&mut self, queues: usize, features: u64) {
        self.reset();
        self.negotiate(FEATURES | features);
        assert!(self.status() & FEATURES_OK != 0, "the features are refused");
        for index in 0..queues {
            let ring = Ring::new();
            self.place_queue(index as u32, QUEUE_SIZE.into(), ring.addresses());
            self.rings.push(ring);
        }
        self.add_status(DRIVER_OK);
    }

    /// Rings the doorbell of queue `index`.
    pub fn notify(&self, index: u32) {
        self.write(register::QUEUE_NOTIFY, index);
    }

    /// Makes a chain of `pieces` available on queue `index` and rings.
    pub fn submit(&mut self, index: usize, pieces: &[(u64, u32, u16)]) {
        let ring = &mut self.rings[index];
        ring.describe_chain(0, pieces);
        ring.offer(0);
        self.notify(index as u32);
    }

    /// Waits until the device asks for reset.
    pub fn wait_for_fault(&self) {
        while !self.needs_reset() {}
    }

    /// Waits until the first queue is answered.
    pub fn wait_for_answers(&self) {
        while !self.rings[0].all_returned() {
            assert!(!self.needs_reset(), "the device asks for reset");
        }
    }

    /// The address of `offset` in the scratch page.
    pub fn scratch(&self, offset: u64) -> u64 {
        assert!(offset < 4096);
        self.scratch as u64 + offset
    }

    /// Writes bytes into the scratch page.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= 4096);
        // SAFETY: the range lies in the scratch page; the device owns none of it
        // that it has not been given.
        unsafe {
            core::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.scratch.wrapping_add(offset),
                bytes.len(),
            );
        }
    }

    /// Reads bytes from the scratch page.
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= 4096);
        // SAFETY: as above.
        unsafe {
            self.scratch
                .wrapping_add(offset)
                .cast::<[u8; N]>()
                .read_volatile()
        }
    }
}
