//! virtio-console.

use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::hostile::driver::{Device, register};
use crate::scenarios::Context;
use crate::virtio::{self, Identity, Window};
use crate::{interrupts, say};

/// Queues.
pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
pub const QUEUES: usize = 2;
/// The size of the terminal.
pub const FEATURES: u64 = 1;
const END_OF_INPUT: u8 = 0x04;

/// The first console's registers.
pub fn window() -> Window {
    virtio::find(DeviceType::Console, 0)
}

/// The first console, driven by hand.
pub fn start() -> Device {
    let mut device = Device::new(window());
    device.start_with(QUEUES, FEATURES);
    device
}

/// Prints what it reads, up to and without a control-D, halting in between.
pub fn echo(_: &Context) {
    let window = window();
    interrupts::connect(window.gsi);
    let mut console: VirtIOConsole<Identity, MmioTransport> =
        VirtIOConsole::new(virtio::transport(window)).expect("the console starts");
    console.send_bytes(b"ready\n").expect("text is sent");
    loop {
        let seen = interrupts::count(window.gsi);
        // Before it looks: what comes afterwards raises another.
        console.ack_interrupt().expect("the console is in order");
        match console.recv(true).expect("the console is in order") {
            Some(END_OF_INPUT) => break,
            Some(byte) => console.send(byte).expect("text is sent"),
            None => interrupts::wait_for_more(window.gsi, seen),
        }
    }
    say!("echoed");
}

/// Prints `kib` KiB of the pattern called `seed`, whether anybody reads it or not.
pub fn print(context: &Context) {
    const LINE: usize = 1024;
    let seed = context.arguments.number("seed");
    let mut console: VirtIOConsole<Identity, MmioTransport> =
        VirtIOConsole::new(virtio::transport(window())).expect("the console starts");
    for line in 0..context.arguments.number("kib") {
        let mut text = [0; LINE];
        crate::pattern::fill(seed, line * LINE as u64, &mut text);
        console.send_bytes(&text).expect("text is sent");
    }
    say!("printed");
}

/// Says each size of the terminal, until it is one column wide.
pub fn size(_: &Context) {
    let device = start();
    let gsi = device.window.gsi;
    interrupts::connect(gsi);
    let mut seen = 0;
    let mut generation = device.read(register::CONFIG_GENERATION);
    loop {
        let size = device.read(register::CONFIG);
        let (columns, rows) = (size & 0xffff, size >> 16);
        say!("{columns} by {rows}");
        if columns == 1 {
            return;
        }
        interrupts::wait_for_more(gsi, seen);
        seen = interrupts::count(gsi);
        device.write(register::INTERRUPT_ACK, 3);
        let now = device.read(register::CONFIG_GENERATION);
        assert_ne!(now, generation, "the configuration has changed");
        generation = now;
    }
}
