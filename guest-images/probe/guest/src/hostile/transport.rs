//! Registers touched in no order, doorbells rung without end.

use alloc::vec;

use super::driver::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, Device, FEATURES_OK, NEEDS_RESET, QUEUE_SIZE, Ring, WRITE,
    register,
};
use crate::friendly::{self, block};
use crate::scenarios::Context;
use crate::{mmio, pattern, port, say, serial, virtio};

const VERSION_1: u64 = 1 << 32;

fn check(context: &Context) {
    block::compare(
        &mut block::start(block::window()),
        context.arguments.number("seed"),
    );
}

/// Steps of the life cycle out of order.
pub fn life_cycle(context: &Context) {
    let mut device = Device::new(block::window());
    device.reset();

    // DRIVER_OK before FEATURES_OK, and doorbells then.
    device.add_status(ACKNOWLEDGE | DRIVER);
    device.add_status(DRIVER_OK);
    assert_eq!(
        device.status() & DRIVER_OK,
        0,
        "DRIVER_OK without FEATURES_OK"
    );
    device.notify(0);

    // Features nobody offered.
    device.negotiate(VERSION_1 | 1 << 50);
    assert_eq!(device.status() & FEATURES_OK, 0, "unknown features");
    // None at all: this device is not the transitional one that would take.
    device.reset();
    device.negotiate(0);
    assert_eq!(device.status() & FEATURES_OK, 0, "no VERSION_1");
    // FEATURES_OK before DRIVER.
    device.reset();
    device.add_status(FEATURES_OK);
    assert_eq!(device.status() & FEATURES_OK, 0, "no DRIVER");

    // Features changed once they are agreed on.
    device.reset();
    device.negotiate(VERSION_1);
    assert_ne!(device.status() & FEATURES_OK, 0);
    device.write(register::DRIVER_FEATURES_SEL, 1);
    device.write(register::DRIVER_FEATURES, 0xffff_ffff);
    // The device's own bits.
    device.add_status(NEEDS_RESET);
    assert_eq!(
        device.status() & NEEDS_RESET,
        0,
        "the driver set NEEDS_RESET"
    );

    // Queue sizes that are none. Started without a queue, the device is deaf.
    let ring = Ring::new();
    for size in [0, 3, 257, 0x1_0000, 0xffff_ffff] {
        device.place_queue(0, size, ring.addresses());
    }
    device.place_queue(77, 16, ring.addresses());
    assert_eq!(device.read(register::QUEUE_SIZE_MAX), 0, "queue 77");
    device.add_status(DRIVER_OK);
    device.notify(0);
    device.notify(77);
    friendly::entropy::check();
    check(context);

    // A queue moved while the device uses it stays where it was.
    let mut device = Device::started(block::window(), 1);
    device.place_queue(0, QUEUE_SIZE.into(), [0, 0, 0]);
    let data = device.scratch(1024);
    let (head, status) = (device.scratch(0), device.scratch(16));
    device.submit(0, &[(head, 16, 0), (data, 512, WRITE), (status, 1, WRITE)]);
    device.wait_for_answers();

    // A queue taken away is gone.
    device.write(register::QUEUE_READY, 0);
    assert_eq!(device.read(register::QUEUE_READY), 0, "QueueReady stays");
    device.notify(0);
    check(context);
    say!("in order");
}

/// Every register in every width, readable or not.
pub fn registers(context: &Context) {
    let window = block::window();
    // Not the doorbell, the status, nor what goes on beyond the registers.
    for value in [0, 1, u64::MAX] {
        for offset in (0..0x200).filter(|offset| offset / 4 != register::STATUS / 4) {
            let address = window.address + offset;
            mmio::write_u8(address, value as u8);
            mmio::read_u8(address);
            if offset % 2 == 0 {
                mmio::write_u16(address, value as u16);
                mmio::read_u16(address);
            }
            if offset % 4 == 0 {
                mmio::write(address, value as u32);
                mmio::read(address);
            }
            if offset % 8 == 0 {
                mmio::write_u64(address, value);
                mmio::read_u64(address);
            }
        }
    }
    // The end of the window, and a register across its end.
    mmio::read_u64(window.address + 0xff8);
    friendly::entropy::check();
    check(context);
    say!("registers");
}

/// Doorbells for queues that are there, are not, and for no driver at all.
pub fn doorbells(context: &Context) {
    const TIMES: u32 = 2000;
    let window = block::window();
    let mut device = Device::new(window);
    device.reset();
    for _ in 0..TIMES {
        device.notify(0);
    }
    device.start(1);
    for turn in 0..TIMES {
        device.notify(turn % 3);
    }
    assert!(!device.needs_reset());
    friendly::entropy::check();
    check(context);
    say!("{} rings", 2 * TIMES);
}

/// Resets a device while it is at work.
pub fn reset_in_flight(context: &Context) {
    const TIMES: usize = 50;
    let window = block::window();
    let buffer = virtio::pages(16).as_ptr() as u64;
    let mut device = Device::new(window);
    for _ in 0..TIMES {
        device.start(1);
        let (head, status) = (device.scratch(0), device.scratch(16));
        let pieces = [(head, 16, 0), (buffer, 0x1_0000, WRITE), (status, 1, WRITE)];
        let ring = &mut device.rings[0];
        ring.describe_chain(0, &pieces);
        for _ in 0..QUEUE_SIZE {
            ring.offer(0);
        }
        device.notify(0);
        device.reset();
    }
    check(context);
    say!("{TIMES} resets");
}

/// Resets a device whose disk has reads to do, many times, and sees that none of
/// them reaches memory that is used for something else then.
pub fn reads_in_flight(context: &Context) {
    const TIMES: usize = 200;
    const READS: usize = 5;
    const READ_BYTES: usize = 0x1_0000;
    const READ_SECTORS: u64 = (READ_BYTES / 512) as u64;
    let sectors = context.arguments.number("sectors");
    let window = block::window();
    let words = READS * READ_BYTES / 8;
    let buffer = virtio::pages(READS * READ_BYTES / 4096)
        .as_ptr()
        .cast::<u64>();
    let mut device = Device::new(window);
    for turn in 0..TIMES {
        device.start(1);
        // As many as have room in the queue, each of another part of the disk.
        for read in 0..READS {
            let header = 32 * read;
            let sector = (turn * READS + read) as u64 * READ_SECTORS % sectors;
            device.put(header, &[0; 16]);
            device.put(header + 8, &sector.to_le_bytes());
            let pieces = [
                (device.scratch(header as u64), 16, 0),
                (
                    buffer as u64 + (read * READ_BYTES) as u64,
                    READ_BYTES as u32,
                    WRITE,
                ),
                (device.scratch(header as u64 + 16), 1, WRITE),
            ];
            let first = 3 * read as u16;
            device.rings[0].describe_chain(first, &pieces);
            device.rings[0].offer(first);
        }
        device.notify(0);
        device.reset();
        // All of this is memory that the device has let go of.
        for word in 0..words {
            let value = (turn * words + word) as u64;
            // SAFETY: within the pages above.
            unsafe { buffer.wrapping_add(word).write_volatile(value) };
        }
        device.start(1);
        device.notify(0);
        for word in 0..words {
            // SAFETY: within the pages above.
            let found = unsafe { buffer.wrapping_add(word).read_volatile() };
            assert_eq!(found, (turn * words + word) as u64, "a read came late");
        }
    }
    // Works as ever.
    let mut bytes = vec![0; READ_BYTES];
    let read = block::start(window).read_blocks(0, &mut bytes);
    assert_eq!(read, Ok(()));
    let seed = context.arguments.number("seed");
    assert_eq!(pattern::difference(seed, 0, &bytes), None);
    say!("{TIMES} resets");
}

/// Rings where no memory is.
pub fn rings_outside_memory(context: &Context) {
    let window = block::window();
    let good = Ring::new().addresses();
    let outside = [0xd000_0000, 1 << 40, !0xfff];
    for index in 0..3 {
        for address in outside {
            let mut device = Device::new(window);
            device.reset();
            device.negotiate(VERSION_1);
            let mut addresses = good;
            addresses[index] = address;
            device.place_queue(0, QUEUE_SIZE.into(), addresses);
            device.add_status(DRIVER_OK);
            device.notify(0);
            device.wait_for_fault();
        }
    }
    friendly::entropy::check();
    check(context);
    say!("outside");
}

/// Does so much of each thing that a VMM counts, once it is told to, and says when it
/// has done it all: writes to ports, rings of a disk's doorbell, as many of one that
/// nobody has, reads of one sector each, and one write.
pub fn counted(context: &Context) {
    const NOBODYS_PORT: u16 = 0x500;
    const NOBODYS_QUEUE: u32 = 1;
    let number = |name| context.arguments.number(name);
    let mut device = Device::started(block::window(), 1);
    let (head, status) = (device.scratch(0), device.scratch(16));
    let data = device.scratch(1024);
    say!("ready");
    serial::wait();
    for _ in 0..number("writes") {
        port::write_u8(NOBODYS_PORT, 1);
    }
    for _ in 0..number("rings") {
        device.notify(0);
        device.notify(NOBODYS_QUEUE);
    }
    let reads = number("reads");
    for turn in 0..=reads {
        // `struct virtio_blk_req`: its type is 0 to read, 1 to write.
        let (kind, flags) = match turn < reads {
            true => (0_u8, WRITE),
            false => (1, 0),
        };
        device.put(0, &[kind]);
        device.submit(0, &[(head, 16, 0), (data, 512, flags), (status, 1, WRITE)]);
        device.wait_for_answers();
    }
    device.reset();
    say!("done");
    serial::wait();
}
