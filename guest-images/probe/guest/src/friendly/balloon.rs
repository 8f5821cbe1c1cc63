//! virtio-balloon.

use virtio_drivers::transport::DeviceType;

use crate::hostile::driver::{Device, WRITE, register};
use crate::scenarios::Context;
use crate::virtio::{self, Window};
use crate::{interrupts, say, serial};

/// Queues, with both optional ones.
pub const INFLATE: usize = 0;
pub const DEFLATE: usize = 1;
pub const STATISTICS: usize = 2;
pub const REPORTING: usize = 3;
pub const QUEUES: usize = 4;
/// Statistics, deflation when out of memory, page reporting.
pub const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 5;

const PAGE: u64 = 4096;
/// What is given away: above this program, its heap and its stacks.
const START: u64 = 32 << 20;
const BYTES: u64 = 32 << 20;
/// Where the list of pages and the statistics are in the scratch page.
const LIST: u64 = 0;
const PAGES_IN_LIST: u64 = 256;
const ENTRY_BYTES: usize = 10;

/// The balloon's registers.
pub fn window() -> Window {
    virtio::find(DeviceType::MemoryBallooning, 0)
}

/// The device, started with all features.
pub fn start() -> Device {
    let mut device = Device::new(window());
    device.start_with(QUEUES, FEATURES);
    device
}

/// Puts page numbers into the scratch page, backwards; returns the buffer.
pub fn list(device: &mut Device, first: u64, count: u64) -> (u64, u32, u16) {
    for index in 0..count {
        let number = (first + count - 1 - index) as u32;
        device.put((LIST + index * 4) as usize, &number.to_le_bytes());
    }
    (device.scratch(LIST), count as u32 * 4, 0)
}

fn write_all() {
    for page in (START..START + BYTES).step_by(PAGE as usize) {
        // SAFETY: memory that is mapped and that nothing of this program is in.
        unsafe { (page as *mut u64).write_volatile(page) };
    }
}

fn all_are(expected: fn(u64) -> u64) {
    for page in (START..START + BYTES).step_by(PAGE as usize) {
        // SAFETY: as in `write_all`.
        let value = unsafe { (page as *const u64).read_volatile() };
        assert_eq!(value, expected(page), "at {page:#x}");
    }
}

/// Writes 32 MiB, gives them away by `give`, and says so; then takes them back.
/// Goes on whenever it reads a byte.
fn play(give: impl Fn(&mut Device)) -> Device {
    let mut device = start();
    write_all();
    all_are(|page| page);
    say!("written");
    serial::wait();
    give(&mut device);
    say!("given");
    serial::wait();
    all_are(|_| 0);
    write_all();
    all_are(|page| page);
    device
}

/// Inflates, and deflates.
pub fn inflate(_: &Context) {
    let each_list = |device: &mut Device, queue: usize| {
        for first in (START..START + BYTES).step_by((PAGES_IN_LIST * PAGE) as usize) {
            let list = list(device, first / PAGE, PAGES_IN_LIST);
            device.submit(queue, &[list]);
            device.wait_for_answers_of(queue);
        }
    };
    let mut device = play(|device| each_list(device, INFLATE));
    each_list(&mut device, DEFLATE);
    all_are(|page| page);
    say!("back");
}

/// Reports 16 ranges of 2 MiB at once.
pub fn report(_: &Context) {
    const RANGES: u64 = 16;
    let range = |index| {
        (
            START + index * (BYTES / RANGES),
            (BYTES / RANGES) as u32,
            WRITE,
        )
    };
    let ranges: [_; RANGES as usize] = core::array::from_fn(|index| range(index as u64));
    play(|device| {
        device.submit(REPORTING, &ranges);
        device.wait_for_answers_of(REPORTING);
    });
    say!("back");
}

/// Does as it is told: `actual` is whatever the host wants, until that is nothing.
pub fn target(_: &Context) {
    let device = start();
    let gsi = device.window.gsi;
    interrupts::connect(gsi);
    let mut seen = 0;
    let mut generation = device.read(register::CONFIG_GENERATION);
    say!("ready");
    loop {
        interrupts::wait_for_more(gsi, seen);
        seen = interrupts::count(gsi);
        device.write(register::INTERRUPT_ACK, 3);
        let now = device.read(register::CONFIG_GENERATION);
        assert_ne!(now, generation, "the configuration has changed");
        generation = now;
        let pages = device.read(register::CONFIG);
        device.write(register::CONFIG + 4, pages);
        assert_eq!(device.read(register::CONFIG + 4), pages);
        // What the host says is not the driver's to write.
        device.write(register::CONFIG, !pages);
        assert_eq!(device.read(register::CONFIG), pages);
        say!("{pages} pages");
        if pages == 0 {
            return;
        }
    }
}

fn statistics_buffer(device: &mut Device, free: u64) -> (u64, u32, u16) {
    // A tag that is not known, one twice, and half an entry.
    let entries = [(4, 1), (5, 64 << 20), (999, 7), (4, free)];
    for ((tag, value), index) in entries.into_iter().zip(0..) {
        let tag: u16 = tag;
        device.put(index * ENTRY_BYTES, &tag.to_le_bytes());
        device.put(index * ENTRY_BYTES + 2, &value.to_le_bytes());
    }
    let bytes = entries.len() * ENTRY_BYTES + 5;
    (device.scratch(0), bytes as u32, 0)
}

/// Tells statistics whenever it is asked: so many bytes are free as it has told
/// them before. Ends when it reads a byte.
pub fn statistics(_: &Context) {
    let mut device = start();
    let buffer = statistics_buffer(&mut device, 0);
    device.submit(STATISTICS, &[buffer]);
    say!("ready");
    let mut told = 0;
    while serial::read().is_none() {
        if device.rings[STATISTICS].all_returned() {
            told += 1;
            let buffer = statistics_buffer(&mut device, told);
            device.submit(STATISTICS, &[buffer]);
        }
        assert!(!device.needs_reset(), "the device asks for reset");
    }
    say!("told");
}

/// Has statistics and never tells them. Ends when it reads a byte.
pub fn silent(_: &Context) {
    start();
    say!("ready");
    serial::wait();
    say!("silent");
}
