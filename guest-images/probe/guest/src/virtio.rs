//! Finds virtio devices, and lends memory and addresses to the friendly drivers.

use alloc::alloc::{Layout, alloc_zeroed};
use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::mmio;

const WINDOWS: usize = 0xd000_0000;
const WINDOW_BYTES: usize = 0x1000;
const MAX_WINDOWS: usize = 19;
const FIRST_GSI: u32 = 5;
const MAGIC: u32 = 0x7472_6976;

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Window {
    /// Where they are.
    pub address: usize,
    /// The device's interrupt.
    pub gsi: u32,
}

/// All devices in the order of their windows, with the type each says it is.
pub fn devices() -> Vec<(u32, Window)> {
    (0..MAX_WINDOWS)
        .map(|index| Window {
            address: WINDOWS + index * WINDOW_BYTES,
            gsi: FIRST_GSI + index as u32,
        })
        .filter(|window| mmio::read(window.address) == MAGIC)
        .map(|window| (mmio::read(window.address + 8), window))
        .collect()
}

/// The device number `index` of type `kind`.
pub fn find(kind: DeviceType, index: usize) -> Window {
    find_type(kind as u32, index)
}

/// The device number `index` of the type with this number (virtio 1.3, section 5).
pub fn find_type(kind: u32, index: usize) -> Window {
    let mut found = devices().into_iter().filter(|(id, _)| *id == kind);
    let (_, window) = found.nth(index).expect("the device is there");
    window
}

/// What `virtio_drivers` reaches a device by.
pub fn transport(window: Window) -> MmioTransport<'static> {
    let header = NonNull::new(window.address as *mut _).expect("not at zero");
    // SAFETY: the registers are there (`devices` has read the magic number) and
    // stay there.
    unsafe { MmioTransport::new(header, WINDOW_BYTES) }.expect("a virtio device")
}

/// Zeroed memory for `pages` pages that nobody else has, for good.
pub fn pages(pages: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a size");
    // SAFETY: the size is not zero: no driver asks for no pages.
    NonNull::new(unsafe { alloc_zeroed(layout) }).expect("the heap is large enough")
}

/// Memory is mapped one to one, so addresses are what they are.
pub struct Identity;

// SAFETY: `pages` gives memory to nobody else and zeroed, and never takes it back.
unsafe impl Hal for Identity {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let start = pages(count);
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as usize as *mut u8).expect("not at zero")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
