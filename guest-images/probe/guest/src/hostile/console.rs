//! Text and buffers that no driver gives a console. The tests have typed something.

use super::driver::{Descriptor, Device, INDIRECT, NEXT, WRITE};
use super::{Attack, Outcome};
use crate::friendly::console::{self, RECEIVE, TRANSMIT};
use crate::say;
use crate::scenarios::Context;

/// The tests give this guest so much memory.
const END: u64 = 64 << 20;

const ATTACKS: &[Attack] = &[
    fault("text-outside-memory", |device| {
        device.submit(TRANSMIT, &[(1 << 40, 64, 0)]);
    }),
    fault("text-past-the-end", |device| {
        device.submit(TRANSMIT, &[(END - 32, 64, 0)]);
    }),
    fault("text-in-a-device", |device| {
        device.submit(TRANSMIT, &[(0xd000_0000, 64, 0)]);
    }),
    fault("text-that-wraps-around", |device| {
        device.submit(TRANSMIT, &[(u64::MAX - 31, 64, 0)]);
    }),
    answer("text-of-four-gigabytes", |device| {
        device.submit(TRANSMIT, &[(0, u32::MAX, 0)]);
        device.wait_for_answers_of(TRANSMIT);
    }),
    answer("text-without-end", |device| {
        // Nobody reads it.
        for _ in 0..64 {
            device.submit(TRANSMIT, &[(0, 1 << 20, 0)]);
            device.wait_for_answers_of(TRANSMIT);
        }
    }),
    answer("text-that-loops", |device| {
        let address = device.scratch(0);
        let descriptor = Descriptor {
            address,
            length: 16,
            flags: NEXT,
            next: 0,
        };
        device.rings[TRANSMIT].describe(0, descriptor);
        device.rings[TRANSMIT].offer(0);
        device.notify(TRANSMIT as u32);
        device.wait_for_answers_of(TRANSMIT);
    }),
    answer("text-to-be-written", |device| {
        device.put(0, &[7; 64]);
        let text = device.scratch(0);
        device.submit(TRANSMIT, &[(text, 64, WRITE)]);
        device.wait_for_answers_of(TRANSMIT);
        assert_eq!(device.get(0), [7; 64], "the device wrote where it must not");
    }),
    answer("text-by-an-indirect-table-of-no-length", |device| {
        let table = device.scratch(0);
        device.submit(TRANSMIT, &[(table, 0, INDIRECT)]);
        device.wait_for_answers_of(TRANSMIT);
    }),
    fault("text-by-an-index-that-jumps", |device| {
        device.rings[TRANSMIT].set_available(1000);
        device.notify(TRANSMIT as u32);
    }),
    fault("buffer-outside-memory", |device| {
        device.submit(RECEIVE, &[(1 << 40, 64, WRITE)]);
    }),
    fault("buffer-past-the-end", |device| {
        device.submit(RECEIVE, &[(END - 1, 64, WRITE)]);
    }),
    answer("buffer-not-writable", |device| {
        device.put(0, &[7; 64]);
        let buffer = device.scratch(0);
        device.submit(RECEIVE, &[(buffer, 64, 0)]);
        device.wait_for_answers_of(RECEIVE);
        assert_eq!(device.get(0), [7; 64], "the device wrote where it must not");
        assert_eq!(device.rings[RECEIVE].used(0).1, 0);
    }),
    answer("buffer-of-no-length", |device| {
        let buffer = device.scratch(0);
        device.submit(RECEIVE, &[(buffer, 0, WRITE)]);
        device.wait_for_answers_of(RECEIVE);
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

/// Makes the attack that the command line names; then the console works as ever.
pub fn play(context: &Context) {
    let attack = super::find(ATTACKS, context.arguments.text("attack"));
    super::attack(attack, &mut console::start());
    let mut device = console::start();
    let text = device.scratch(0);
    device.submit(TRANSMIT, &[(text, 64, 0)]);
    device.wait_for_answers_of(TRANSMIT);
    say!("survived");
}
