//! Requests for random bytes that no driver makes.

use virtio_drivers::transport::DeviceType;

use super::driver::{Device, INDIRECT, WRITE};
use super::{Attack, Outcome};
use crate::scenarios::Context;
use crate::{say, virtio};

const ATTACKS: &[Attack] = &[
    answer("nothing-writable", |device| {
        let buffer = device.scratch(0);
        device.put(0, &[7; 64]);
        device.submit(0, &[(buffer, 64, 0)]);
        device.wait_for_answers();
        assert_eq!(device.get(0), [7; 64], "the device wrote where it must not");
        assert_eq!(device.rings[0].used(0).1, 0);
    }),
    answer("no-length", |device| {
        let buffer = device.scratch(0);
        device.submit(0, &[(buffer, 0, WRITE)]);
    }),
    answer("outside-memory", |device| {
        device.submit(0, &[(1 << 40, 64, WRITE)]);
        device.wait_for_answers();
        assert_eq!(device.rings[0].used(0).1, 0);
    }),
    // The device gives what it likes, and no more.
    answer("four-gigabytes", |device| {
        device.submit(0, &[(64 << 20, u32::MAX, WRITE)]);
        device.wait_for_answers();
        assert!(device.rings[0].used(0).1 <= 4096);
    }),
    answer("indirect-table-outside-memory", |device| {
        device.submit(0, &[(1 << 40, 48, INDIRECT)]);
    }),
    Attack {
        name: "available-index-jumps",
        run: |device| {
            device.rings[0].set_available(1000);
            device.notify(0);
        },
        outcome: Outcome::Fault,
    },
];

const fn answer(name: &'static str, run: fn(&mut Device)) -> Attack {
    Attack {
        name,
        run,
        outcome: Outcome::Answer,
    }
}

/// Makes the attack that the command line names; then all is as ever.
pub fn play(context: &Context) {
    let attack = super::find(ATTACKS, context.arguments.text("attack"));
    let window = virtio::find(DeviceType::EntropySource, 0);
    super::attack(attack, &mut Device::started(window, 1));
    say!("survived");
}
