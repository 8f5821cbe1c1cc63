//! virtio-pmem.

use virtio_drivers::transport::DeviceType;

use super::entropy;
use crate::hostile::driver::{Device, WRITE, register};
use crate::scenarios::Context;
use crate::virtio::{self, Window};
use crate::{say, serial};

/// Its type, which `virtio_drivers` does not know.
const PMEM: u32 = 27;
const FLUSH: [u8; 4] = [0; 4];
/// Where a request and its answer are in the scratch page.
const REQUEST: u64 = 0;
const ANSWER: u64 = 64;
/// What the page tables map.
const MAPPED: u64 = 8 << 30;

/// The first device's registers.
pub fn window() -> Window {
    virtio::find_type(PMEM, 0)
}

/// The first device, started.
pub fn start() -> Device {
    Device::started(window(), 1)
}

/// Where its memory is, and how much that is.
pub fn range(device: &Device) -> (u64, u64) {
    let number = |offset| {
        let low = device.read(register::CONFIG + offset);
        let high = device.read(register::CONFIG + offset + 4);
        u64::from(high) << 32 | u64::from(low)
    };
    let (start, bytes) = (number(0), number(8));
    assert!(start >= 1 << 32 && start + bytes <= MAPPED);
    (start, bytes)
}

/// The number at an address of it.
fn read(address: u64) -> u64 {
    // SAFETY: the device says that there is memory, and nothing of this program is
    // there.
    unsafe { (address as *const u64).read_volatile() }
}

fn write(address: u64, value: u64) {
    // SAFETY: as for reading.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// The pattern's number at `position`.
fn expected(seed: u64, position: u64) -> u64 {
    let mut bytes = [0; 8];
    crate::pattern::fill(seed, position, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Flushes, and returns what is answered.
pub fn flush(device: &mut Device) -> u32 {
    device.put(REQUEST as usize, &FLUSH);
    device.put(ANSWER as usize, &[0xaa; 4]);
    let (request, answer) = (device.scratch(REQUEST), device.scratch(ANSWER));
    device.submit(0, &[(request, 4, 0), (answer, 4, WRITE)]);
    device.wait_for_answers();
    u32::from_le_bytes(device.get(ANSWER as usize))
}

/// Compares the first `bytes` with the pattern called `seed` and the rest with
/// zeroes. Then says its first number whenever it reads a byte, until that is zero.
pub fn look(context: &Context) {
    let (seed, length) = (
        context.arguments.number("seed"),
        context.arguments.number("bytes"),
    );
    let (start, bytes) = range(&start());
    for position in (0..bytes).step_by(8) {
        let found = read(start + position);
        let expected = match position < length {
            true => expected(seed, position),
            false => 0,
        };
        assert_eq!(found, expected, "at {position:#x}");
    }
    say!("{bytes} bytes at {start:#x}");
    loop {
        serial::wait();
        let number = read(start);
        say!("{number:#x}");
        if number == 0 {
            return;
        }
    }
}

/// Writes over it, and finds it as it was.
pub fn protected(context: &Context) {
    let seed = context.arguments.number("seed");
    let mut device = start();
    let (start, bytes) = range(&device);
    for position in (0..bytes).step_by(4096) {
        let before = read(start + position);
        write(start + position, !before);
        assert_eq!(read(start + position), before, "at {position:#x}");
    }
    assert_eq!(read(start), expected(seed, 0));
    assert_eq!(flush(&mut device), 0);
    say!("protected");
}

/// Fills it with the pattern called `seed` and flushes that.
pub fn fill(context: &Context) {
    let seed = context.arguments.number("seed");
    let mut device = start();
    let (start, bytes) = range(&device);
    for position in (0..bytes).step_by(8) {
        write(start + position, expected(seed, position));
    }
    assert_eq!(flush(&mut device), 0);
    say!("flushed");
    serial::wait();
}

/// Reads its first number whenever it reads a byte, without end.
pub fn touch(_: &Context) {
    let (start, bytes) = range(&start());
    say!("ready");
    loop {
        serial::wait();
        say!("{:#x}", read(start + bytes - 8));
    }
}

/// Has other devices write to it and read it, which none does.
pub fn lend(context: &Context) {
    let seed = context.arguments.number("seed");
    let (start, bytes) = range(&start());
    let source = virtio::find(DeviceType::EntropySource, 0);
    for address in [start, start + bytes - 64] {
        let before = read(address);
        let mut device = Device::started(source, 1);
        device.submit(0, &[(address, 64, WRITE)]);
        device.wait_for_answers();
        assert_eq!(device.rings[0].used(0).1, 0);
        assert_eq!(read(address), before);
    }
    assert_eq!(read(start), expected(seed, 0));
    entropy::check();
    let console = virtio::find(DeviceType::Console, 0);
    let mut device = Device::started(console, 2);
    device.submit(1, &[(start, 64, 0)]);
    device.wait_for_fault();
    // Nor do rings lie there.
    let mut device = Device::new(source);
    device.reset();
    device.negotiate(1 << 32);
    device.place_queue(0, 16, [start, start + 4096, start + 8192]);
    device.add_status(4);
    device.wait_for_fault();
    device.reset();
    say!("lent to nobody");
}
