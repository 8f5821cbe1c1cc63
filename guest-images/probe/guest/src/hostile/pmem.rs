//! Requests that no driver of persistent memory makes.

use super::driver::{Descriptor, Device, INDIRECT, NEXT, WRITE};
use super::{Attack, Outcome};
use crate::friendly::pmem;
use crate::say;
use crate::scenarios::Context;

const ANSWER: u64 = 64;
/// The tests give this guest so much memory.
const END: u64 = 64 << 20;

const ATTACKS: &[Attack] = &[
    answer("request-of-no-kind", |device| {
        device.put(0, &[0xff; 4]);
        let (request, answer) = (device.scratch(0), device.scratch(ANSWER));
        device.submit(0, &[(request, 4, 0), (answer, 4, WRITE)]);
        device.wait_for_answers();
        assert_eq!(device.get(ANSWER as usize), [0xff; 4]);
    }),
    answer("request-in-pieces", |device| {
        device.put(0, &[0; 4]);
        let (request, answer) = (device.scratch(0), device.scratch(ANSWER));
        let (half, rest) = ((request, 1, 0), (request + 1, 3, 0));
        device.submit(0, &[half, (request, 0, 0), rest, (answer, 4, WRITE)]);
        device.wait_for_answers();
        assert_eq!(device.get(ANSWER as usize), [0; 4]);
    }),
    answer("answer-with-too-much-room", |device| {
        device.put(0, &[7; 128]);
        device.put(0, &[0; 4]);
        let (request, answer) = (device.scratch(0), device.scratch(ANSWER));
        device.submit(0, &[(request, 4, 0), (answer, 32, WRITE)]);
        device.wait_for_answers();
        assert_eq!(device.get(ANSWER as usize), [0, 0, 0, 0, 7, 7, 7, 7]);
    }),
    answer("flushes-without-end", |device| {
        for _ in 0..1000 {
            assert_eq!(pmem::flush(device), 0);
        }
    }),
    fault("request-too-short", |device| {
        let (request, answer) = (device.scratch(0), device.scratch(ANSWER));
        device.submit(0, &[(request, 3, 0), (answer, 4, WRITE)]);
    }),
    fault("request-writable", |device| {
        let (request, answer) = (device.scratch(0), device.scratch(ANSWER));
        device.submit(0, &[(request, 4, WRITE), (answer, 4, WRITE)]);
    }),
    fault("request-outside-memory", |device| {
        let answer = device.scratch(ANSWER);
        device.submit(0, &[(1 << 40, 4, 0), (answer, 4, WRITE)]);
    }),
    fault("request-in-the-device-itself", |device| {
        let (start, _) = pmem::range(device);
        let answer = device.scratch(ANSWER);
        device.submit(0, &[(start, 4, 0), (answer, 4, WRITE)]);
    }),
    fault("no-answer", |device| {
        let request = device.scratch(0);
        device.submit(0, &[(request, 4, 0)]);
    }),
    fault("answer-too-short", |device| {
        let (request, answer) = (device.scratch(0), device.scratch(ANSWER));
        device.submit(0, &[(request, 4, 0), (answer, 3, WRITE)]);
    }),
    fault("answer-past-the-end", |device| {
        let request = device.scratch(0);
        device.submit(0, &[(request, 4, 0), (END - 2, 4, WRITE)]);
    }),
    fault("answer-that-wraps-around", |device| {
        let request = device.scratch(0);
        device.submit(0, &[(request, 4, 0), (u64::MAX - 1, 4, WRITE)]);
    }),
    fault("answer-in-the-device-itself", |device| {
        let (start, _) = pmem::range(device);
        let request = device.scratch(0);
        device.submit(0, &[(request, 4, 0), (start, 4, WRITE)]);
    }),
    fault("request-that-loops", |device| {
        let address = device.scratch(0);
        let descriptor = Descriptor {
            address,
            length: 4,
            flags: NEXT,
            next: 0,
        };
        device.rings[0].describe(0, descriptor);
        device.rings[0].offer(0);
        device.notify(0);
    }),
    fault("indirect-table-of-no-length", |device| {
        let table = device.scratch(0);
        device.submit(0, &[(table, 0, INDIRECT)]);
    }),
    fault("available-index-jumps", |device| {
        device.rings[0].set_available(1000);
        device.notify(0);
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

/// Makes the attack that the command line names; then a flush works as ever.
pub fn play(context: &Context) {
    let attack = super::find(ATTACKS, context.arguments.text("attack"));
    super::attack(attack, &mut pmem::start());
    assert_eq!(pmem::flush(&mut pmem::start()), 0);
    say!("survived");
}
