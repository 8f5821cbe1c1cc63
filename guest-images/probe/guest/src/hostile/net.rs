//! Frames and buffers that no driver has.

use super::driver::{Descriptor, Device, INDIRECT, NEXT, QUEUE_SIZE, WRITE};
use super::{Attack, Outcome};
use crate::friendly::net;
use crate::scenarios::Context;
use crate::{friendly, say};

const RX: usize = 0;
const TX: usize = 1;
const QUEUES: usize = 2;
const HEADER_BYTES: u32 = 12;
/// Memory that nothing of this program uses, as far as the longest frame.
const FREE: u64 = 32 << 20;

const ATTACKS: &[Attack] = &[
    fault("frame-writable", |device| {
        let address = device.scratch(0);
        device.submit(TX, &[(address, 100, WRITE)]);
    }),
    fault("frame-outside-memory", |device| {
        device.submit(TX, &[(1 << 40, 100, 0)]);
    }),
    fault("frame-wraps-around", |device| {
        device.submit(TX, &[(u64::MAX - 50, 100, 0)]);
    }),
    fault("frame-of-four-gigabytes", |device| {
        device.submit(TX, &[(FREE, u32::MAX, 0)]);
    }),
    fault("frame-without-end", |device| {
        let descriptor = Descriptor {
            address: device.scratch(0),
            length: 64,
            flags: NEXT,
            next: 0,
        };
        device.rings[TX].describe(0, descriptor);
        device.rings[TX].offer(0);
        device.notify(TX as u32);
    }),
    fault("frame-past-the-table", |device| {
        device.rings[TX].offer(QUEUE_SIZE);
        device.notify(TX as u32);
    }),
    fault("indirect-table-outside-memory", |device| {
        device.submit(TX, &[(1 << 40, 48, INDIRECT)]);
    }),
    fault("available-index-jumps", |device| {
        device.rings[TX].set_available(1000);
        device.notify(TX as u32);
    }),
    // The host has sent frames, so buffers are looked at.
    fault("buffer-not-writable", |device| {
        let address = device.scratch(0);
        device.submit(RX, &[(address, 2000, 0)]);
    }),
    fault("buffer-too-short", |device| {
        let address = device.scratch(0);
        device.submit(RX, &[(address, HEADER_BYTES - 1, WRITE)]);
    }),
    fault("buffer-outside-memory", |device| {
        device.submit(RX, &[(1 << 40, 2000, WRITE)]);
    }),
    answer("frame-of-no-length", |device| {
        let address = device.scratch(0);
        send(device, (address, 0, 0));
    }),
    answer("frame-too-short", |device| {
        for length in 1..=HEADER_BYTES + 13 {
            let address = device.scratch(0);
            send(device, (address, length, 0));
        }
    }),
    answer("frame-too-long", |device| {
        for length in [65_570, 70_000, 1 << 20] {
            send(device, (FREE, length, 0));
        }
    }),
    answer("header-of-nonsense", |device| {
        for byte in 0..=u8::MAX {
            device.put(0, &[byte; HEADER_BYTES as usize]);
            let address = device.scratch(0);
            send(device, (address, 1000, 0));
        }
    }),
    answer("no-such-queue", |device| {
        for queue in 2..40 {
            device.notify(queue);
        }
    }),
];

/// Sends what may be nonsense and waits until the device has taken it.
fn send(device: &mut Device, piece: (u64, u32, u16)) {
    device.submit(TX, &[piece]);
    while !device.rings[TX].all_returned() {
        assert!(!device.needs_reset(), "the device asks for reset");
    }
}

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

/// Makes the attack that the command line names, and then sends a frame as ever.
pub fn play(context: &Context) {
    let attack = super::find(ATTACKS, context.arguments.text("attack"));
    super::attack(attack, &mut Device::started(net::window(), QUEUES));
    net::announce("survived");
    say!("survived");
}

/// Resets the device over and over while frames are on their way in both
/// directions.
pub fn resets(_: &Context) {
    const TURNS: usize = 200;
    let mut device = Device::new(net::window());
    for turn in 0..TURNS {
        device.start(QUEUES);
        let address = device.scratch(0);
        device.put(0, &[0; HEADER_BYTES as usize]);
        for head in 0..QUEUE_SIZE {
            device.rings[RX].describe_chain(head, &[(address + 2048, 1500, WRITE)]);
            device.rings[RX].offer(head);
            device.rings[TX].describe_chain(head, &[(address, 1000, 0)]);
            device.rings[TX].offer(head);
        }
        device.notify((turn % QUEUES) as u32);
        device.notify(((turn + 1) % QUEUES) as u32);
    }
    device.reset();
    friendly::entropy::check();
    net::announce("survived");
    say!("{TURNS} resets");
}
