//! Requests to a disk that no driver makes.

use super::driver::{Descriptor, Device, INDIRECT, NEXT, QUEUE_SIZE, WRITE};
use super::{Attack, Outcome};
use crate::friendly::block;
use crate::say;
use crate::scenarios::Context;

/// Where a request's parts are in the scratch page.
const HEADER: u64 = 0;
const STATUS: u64 = 16;
const TABLE: u64 = 64;
const DATA: u64 = 1024;

const HEADER_BYTES: u32 = 16;
const SECTOR_BYTES: u32 = 512;
const READ: u32 = 0;
const WRITE_SECTORS: u32 = 1;
const GET_IDENTITY: u32 = 8;

/// Not memory: the devices' windows, past the end, and where addition wraps.
const OUTSIDE: [u64; 4] = [0xd000_0000, 1 << 40, u64::MAX - 15, u64::MAX];

const ATTACKS: &[Attack] = &[
    fault("readable-after-writable", |device| {
        header(device, READ);
        let (head, data, status) = parts(device);
        device.submit(0, &[head, data, (device.scratch(DATA), 512, 0), status]);
    }),
    fault("loop-through-the-header", |device| {
        header(device, READ);
        looped(device, 0);
    }),
    answer("loop-of-data", |device| {
        header(device, READ);
        looped(device, 1);
    }),
    fault("next-past-the-table", |device| {
        header(device, READ);
        let address = device.scratch(HEADER);
        let head = descriptor(address, HEADER_BYTES, NEXT, QUEUE_SIZE + 5);
        device.rings[0].describe(0, head);
        offer(device, 0);
    }),
    fault("head-past-the-table", |device| offer(device, QUEUE_SIZE)),
    fault("available-index-jumps", |device| {
        device.rings[0].set_available(1000);
        device.notify(0);
    }),
    fault("header-too-short", |device| {
        header(device, READ);
        let (head, data, status) = parts(device);
        device.submit(0, &[(head.0, 15, 0), data, status]);
    }),
    fault("header-writable", |device| {
        header(device, READ);
        let (head, data, status) = parts(device);
        device.submit(0, &[(head.0, HEADER_BYTES, WRITE), data, status]);
    }),
    fault("header-alone", |device| {
        header(device, READ);
        let (head, ..) = parts(device);
        device.submit(0, &[head]);
    }),
    fault("no-status", |device| {
        header(device, WRITE_SECTORS);
        let (head, (data, ..), _) = parts(device);
        device.submit(0, &[head, (data, SECTOR_BYTES, 0)]);
    }),
    fault("empty-status", |device| {
        header(device, READ);
        let (head, data, status) = parts(device);
        device.submit(0, &[head, data, (status.0, 0, WRITE)]);
    }),
    fault("header-outside-memory", |device| {
        let (_, data, status) = parts(device);
        device.submit(0, &[(OUTSIDE[0], HEADER_BYTES, 0), data, status]);
    }),
    fault("data-outside-memory", |device| {
        header(device, READ);
        let (head, _, status) = parts(device);
        device.submit(0, &[head, (OUTSIDE[1], SECTOR_BYTES, WRITE), status]);
    }),
    fault("data-wraps-around", |device| {
        header(device, READ);
        let (head, _, status) = parts(device);
        device.submit(0, &[head, (OUTSIDE[2], SECTOR_BYTES, WRITE), status]);
    }),
    fault("status-outside-memory", |device| {
        header(device, READ);
        let (head, data, _) = parts(device);
        device.submit(0, &[head, data, (OUTSIDE[3], 1, WRITE)]);
    }),
    fault("data-of-four-gigabytes", |device| {
        header(device, READ);
        let (head, _, status) = parts(device);
        device.submit(0, &[head, (0, u32::MAX, WRITE), status]);
    }),
    fault("indirect-table-of-no-length", |device| {
        let table = device.scratch(TABLE);
        device.submit(0, &[(table, 0, INDIRECT)]);
    }),
    fault("indirect-table-cut-short", |device| {
        let table = device.scratch(TABLE);
        device.submit(0, &[(table, 17, INDIRECT)]);
    }),
    fault("indirect-table-outside-memory", |device| {
        device.submit(0, &[(OUTSIDE[1], 48, INDIRECT)]);
    }),
    fault("indirect-within-indirect", |device| {
        let table = device.scratch(TABLE);
        put_descriptor(device, TABLE, descriptor(table, 48, INDIRECT, 0));
        device.submit(0, &[(table, 48, INDIRECT)]);
    }),
    // All of the same sector of memory, more pieces than the queue has
    // descriptors: section 2.7.5.3.1 forbids it, doing it harms nobody.
    answer("indirect-table-longer-than-the-queue", |device| {
        header(device, READ);
        let data = device.scratch(DATA);
        let pieces = QUEUE_SIZE * 2;
        let last = pieces + 1;
        let at = |index: u16| TABLE + u64::from(index) * 16;
        let head = device.scratch(HEADER);
        put_descriptor(device, at(0), descriptor(head, HEADER_BYTES, NEXT, 1));
        for index in 1..last {
            let piece = descriptor(data, SECTOR_BYTES, NEXT | WRITE, index + 1);
            put_descriptor(device, at(index), piece);
        }
        let status = device.scratch(STATUS);
        put_descriptor(device, at(last), descriptor(status, 1, WRITE, 0));
        let table = device.scratch(TABLE);
        device.submit(0, &[(table, (u32::from(last) + 1) * 16, INDIRECT)]);
    }),
    // Less than a sector, and nothing at all.
    answer("half-a-sector", |device| {
        header(device, READ);
        let (head, (data, ..), status) = parts(device);
        device.submit(0, &[head, (data, 100, WRITE), status]);
        device.wait_for_answers();
        assert_eq!(device.get(STATUS as usize), [1], "an I/O error");
    }),
    answer("nothing-to-read", |device| {
        header(device, READ);
        let (head, _, status) = parts(device);
        device.submit(0, &[head, status]);
    }),
    answer("identity-without-room", |device| {
        header(device, GET_IDENTITY);
        let (head, _, status) = parts(device);
        device.submit(0, &[head, status]);
    }),
];

const fn fault(name: &'static str, run: fn(&mut Device)) -> Attack {
    Attack {
        name,
        run,
        outcome: Outcome::Fault,
    }
}

const fn answer(name: &'static str, run: fn(&mut Device)) -> Attack {
    Attack {
        name,
        run,
        outcome: Outcome::Answer,
    }
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

fn header(device: &mut Device, kind: u32) {
    let mut header = [0; HEADER_BYTES as usize];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    device.put(HEADER as usize, &header);
    device.put(STATUS as usize, &[0xff]);
}

type Piece = (u64, u32, u16);

/// The parts of a good request to read a sector.
fn parts(device: &Device) -> (Piece, Piece, Piece) {
    (
        (device.scratch(HEADER), HEADER_BYTES, 0),
        (device.scratch(DATA), SECTOR_BYTES, WRITE),
        (device.scratch(STATUS), 1, WRITE),
    )
}

fn offer(device: &mut Device, head: u16) {
    device.rings[0].offer(head);
    device.notify(0);
}

/// Header, then data whose next descriptor is `back`.
fn looped(device: &mut Device, back: u16) {
    let (head, data, _) = parts(device);
    let first = descriptor(head.0, head.1, NEXT, 1);
    let second = descriptor(data.0, data.1, NEXT | WRITE, back);
    device.rings[0].describe(0, first);
    device.rings[0].describe(1, second);
    offer(device, 0);
}

fn put_descriptor(device: &mut Device, offset: u64, descriptor: Descriptor) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&descriptor.length.to_le_bytes());
    bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
    bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
    device.put(offset as usize, &bytes);
}

/// Makes the attack that the command line names, and then uses the disk as ever.
pub fn play(context: &Context) {
    let attack = super::find(ATTACKS, context.arguments.text("attack"));
    let window = block::window();
    super::attack(attack, &mut Device::started(window, 1));
    block::compare(&mut block::start(window), context.arguments.number("seed"));
    say!("survived");
}

/// Asks for what the device does not do.
pub fn unsupported(context: &Context) {
    const UNSUPPORTED: u8 = 2;
    let window = block::window();
    let mut device = Device::started(window, 1);
    // SCSI command, discard, secure erase, and nothing the standard knows.
    for kind in [2, 11, 14, 0xffff_ffff] {
        header(&mut device, kind);
        let (head, _, status) = parts(&device);
        device.submit(0, &[head, status]);
        device.wait_for_answers();
        assert_eq!(device.get(STATUS as usize), [UNSUPPORTED], "type {kind}");
    }
    block::compare(&mut block::start(window), context.arguments.number("seed"));
    say!("unsupported");
}
