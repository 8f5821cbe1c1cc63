//! Makes a VMM panic that is made for it.

use super::driver::{ACKNOWLEDGE, DRIVER, Device, FEATURES_OK, register};
use crate::scenarios::Context;
use crate::virtio::Window;
use crate::{friendly, interrupts, mmio, port, say, virtio};

/// The device's type, its calls, and the port: as that VMM has them.
const DEVICE_TYPE: u32 = 0x7a;
const READ_CONFIG: u8 = 1;
const ACTIVATE: u8 = 3;
const HAND_OVER: u8 = 4;
const PROCESS_QUEUE: u8 = 5;
const QUEUE_TAKEN_AWAY: u8 = 6;
const PROCESS_BACKEND: u8 = 7;
const RESET: u8 = 8;
const PORT: u16 = 0x710;

const INTERRUPT_STATUS: usize = 0x060;
const CONFIGURATION_CHANGE: u32 = 2;

/// Has the device panic in `call` when that comes next.
fn arm(window: Window, call: u8) {
    mmio::write_u8(window.address + register::CONFIG, call);
}

/// Sees to it that `call` comes.
fn provoke(device: &mut Device, call: u8) {
    match call {
        READ_CONFIG => assert_eq!(device.read(register::CONFIG), 0),
        ACTIVATE | HAND_OVER => device.start(1),
        PROCESS_QUEUE => device.submit(0, &[(device.scratch(0), 8, 0)]),
        QUEUE_TAKEN_AWAY => {
            device.write(register::QUEUE_SEL, 0);
            device.write(register::QUEUE_READY, 0);
            assert_eq!(device.read(register::QUEUE_READY), 0);
        }
        // Arming was enough: 2 is that very write.
        _ => {}
    }
}

fn check(device: &mut Device) {
    device.start(1);
    let buffer = device.scratch(0);
    device.submit(0, &[(buffer, 8, 0)]);
    device.wait_for_answers();
}

/// In each of a device's functions in turn. Each time it asks for reset, another device
/// works meanwhile, and this one after its reset; after the last, it never does.
pub fn in_a_device(_: &Context) {
    let mut device = Device::new(virtio::find_type(DEVICE_TYPE, 0));
    interrupts::connect(device.window.gsi);
    for call in READ_CONFIG..=PROCESS_BACKEND {
        check(&mut device);
        let seen = interrupts::count(device.window.gsi);
        device.write(register::INTERRUPT_ACK, u32::MAX);
        arm(device.window, call);
        provoke(&mut device, call);
        device.wait_for_fault();
        interrupts::wait_for_more(device.window.gsi, seen);
        let status = device.read(INTERRUPT_STATUS);
        assert_ne!(status & CONFIGURATION_CHANGE, 0, "call {call}");
        friendly::entropy::check();
    }
    check(&mut device);
    arm(device.window, RESET);
    for _ in 0..10 {
        device.reset();
        device.negotiate(1 << 32);
        let status = device.status();
        assert_eq!(status & FEATURES_OK, 0, "it is dead");
        assert_eq!(status, ACKNOWLEDGE | DRIVER);
        friendly::entropy::check();
    }
    say!("survived");
}

/// Where `place` says; the VMM ends.
pub fn elsewhere(context: &Context) {
    let value = match context.arguments.text("place") {
        "event-loop" => 1,
        _ => 2,
    };
    port::write_u8(PORT, value);
    interrupts::sleep_forever();
}
