//! Pages and lists that no driver gives away.

use super::driver::{Device, INDIRECT, WRITE};
use super::{Attack, Outcome};
use crate::friendly::balloon::{self, DEFLATE, INFLATE, REPORTING, STATISTICS};
use crate::say;
use crate::scenarios::Context;

const PAGE: u64 = 4096;
/// Memory that nothing of this program is in.
const FREE: u64 = 32 << 20;
/// Where the devices are.
const HOLE: u64 = 0xd000_0000;
/// The tests give this guest so much memory.
const END: u64 = 64 << 20;

const ATTACKS: &[Attack] = &[
    fault("page-outside-memory", |device| {
        inflate(device, &[FREE as u32 / 4096, u32::MAX]);
    }),
    fault("page-in-the-hole", |device| {
        inflate(device, &[(HOLE / PAGE) as u32]);
    }),
    fault("page-past-the-end", |device| {
        // One run, of which the last page is not there.
        inflate(device, &[(END / PAGE) as u32 - 1, (END / PAGE) as u32]);
    }),
    fault("deflated-page-outside-memory", |device| {
        device.put(0, &u32::MAX.to_le_bytes());
        let list = device.scratch(0);
        device.submit(DEFLATE, &[(list, 4, 0)]);
    }),
    fault("list-outside-memory", |device| {
        device.submit(INFLATE, &[(1 << 40, 1024, 0)]);
    }),
    fault("list-of-four-gigabytes", |device| {
        device.submit(INFLATE, &[(0, u32::MAX, 0)]);
    }),
    fault("list-longer-than-allowed", |device| {
        // All of memory that is zeroes: page 0, so often.
        device.submit(INFLATE, &[(FREE, 4 * 4096 + 4, 0)]);
    }),
    answer("list-in-many-pieces", |device| {
        // Numbers that are cut between descriptors.
        let list = balloon::list(device, FREE / PAGE, 4);
        let pieces = [(list.0, 3, 0), (list.0 + 3, 6, 0), (list.0 + 9, 7, 0)];
        device.submit(INFLATE, &pieces);
        device.wait_for_answers_of(INFLATE);
    }),
    answer("list-of-nothing", |device| {
        let list = device.scratch(0);
        device.submit(INFLATE, &[(list, 0, 0)]);
    }),
    answer("list-of-half-a-number", |device| {
        let list = device.scratch(0);
        device.submit(INFLATE, &[(list, 2, 0)]);
    }),
    answer("list-to-be-written", |device| {
        let list = device.scratch(0);
        device.put(0, &[0xff; 64]);
        device.submit(INFLATE, &[(list, 64, WRITE)]);
        device.wait_for_answers_of(INFLATE);
        assert_eq!(device.get(0), [0xff; 64]);
    }),
    answer("the-same-page-again-and-again", |device| {
        inflate(device, &[FREE as u32 / 4096; 256]);
        inflate(device, &[FREE as u32 / 4096; 256]);
    }),
    fault("page-with-the-rings", |device| {
        // Reads as zeroes from now on, and so makes no sense.
        let rings = device.rings[INFLATE].addresses();
        let numbers = rings.map(|address| (address / PAGE) as u32);
        let bytes = numbers.map(u32::to_le_bytes);
        device.put(0, bytes.as_flattened());
        let list = device.scratch(0);
        device.submit(DEFLATE, &[(list, 12, 0)]);
        device.wait_for_answers_of(DEFLATE);
        device.submit(INFLATE, &[(list, 12, 0)]);
    }),
    fault("report-outside-memory", |device| {
        let good = (FREE, 2 << 20, WRITE);
        device.submit(REPORTING, &[good, (1 << 40, 2 << 20, WRITE)]);
    }),
    fault("report-past-the-end", |device| {
        device.submit(REPORTING, &[(END - PAGE, 8192, WRITE)]);
    }),
    fault("report-of-four-gigabytes", |device| {
        device.submit(REPORTING, &[(FREE, u32::MAX, WRITE)]);
    }),
    fault("report-that-wraps-around", |device| {
        device.submit(REPORTING, &[(u64::MAX - 4095, 8192, WRITE)]);
    }),
    answer("report-of-less-than-a-page", |device| {
        // Its neighbours stay.
        device.put(0, &[7; 4096]);
        let page = device.scratch(0);
        device.submit(REPORTING, &[(page + 1, 4094, WRITE), (page, 0, WRITE)]);
        device.wait_for_answers_of(REPORTING);
        assert_eq!(device.get(0), [7; 64]);
        assert_eq!(device.get(4032), [7; 64]);
    }),
    answer("report-to-be-read", |device| {
        device.put(0, &[7; 4096]);
        let page = device.scratch(0);
        device.submit(REPORTING, &[(page, 4096, 0)]);
        device.wait_for_answers_of(REPORTING);
        assert_eq!(device.get(0), [7; 64]);
    }),
    answer("reports-without-end", |device| {
        // Each as long as there is memory above this program, over and over.
        let all = (FREE, (END - FREE) as u32, WRITE);
        for _ in 0..64 {
            device.submit(REPORTING, &[all; 8]);
            device.wait_for_answers_of(REPORTING);
        }
    }),
    fault("statistics-outside-memory", |device| {
        device.submit(STATISTICS, &[(1 << 40, 100, 0)]);
    }),
    fault("statistics-of-four-gigabytes", |device| {
        device.submit(STATISTICS, &[(0, u32::MAX, 0)]);
    }),
    answer("statistics-longer-than-there-are-tags", |device| {
        device.submit(STATISTICS, &[(FREE, 1 << 20, 0)]);
    }),
    answer("statistics-again-and-again", |device| {
        let buffer = device.scratch(0);
        for _ in 0..100 {
            device.submit(STATISTICS, &[(buffer, 100, 0)]);
            // The device keeps one, so the one before comes back.
            let ring = &device.rings[STATISTICS];
            while !ring.all_but_one_returned() {}
        }
    }),
    answer("indirect-table-of-no-length", |device| {
        let table = device.scratch(0);
        device.submit(INFLATE, &[(table, 0, INDIRECT)]);
    }),
    fault("available-index-jumps", |device| {
        device.rings[REPORTING].set_available(1000);
        device.notify(REPORTING as u32);
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

fn inflate(device: &mut Device, numbers: &[u32]) {
    for (number, index) in numbers.iter().zip(0..) {
        device.put(index * 4, &number.to_le_bytes());
    }
    let list = device.scratch(0);
    device.submit(INFLATE, &[(list, numbers.len() as u32 * 4, 0)]);
}

/// Makes the attack that the command line names; then the balloon works as ever.
pub fn play(context: &Context) {
    let attack = super::find(ATTACKS, context.arguments.text("attack"));
    super::attack(attack, &mut balloon::start());
    let mut device = balloon::start();
    let list = balloon::list(&mut device, FREE / PAGE, 16);
    for queue in [INFLATE, DEFLATE] {
        device.submit(queue, &[list]);
        device.wait_for_answers_of(queue);
    }
    say!("survived");
}
