//! Exits without end, until a byte arrives on COM1: the host's share of the work for
//! nothing.

use super::driver::Device;
use crate::friendly::block;
use crate::scenarios::Context;
use crate::{mmio, port, say, serial};

/// Turns between looks at COM1, which are exits too.
const TURNS: u32 = 256;

const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_INTERRUPT_ENABLE: u16 = SERIAL_DATA + 1;
/// An interrupt whenever the transmitter is empty, which it always is.
const TRANSMITTER_EMPTY: u8 = 1 << 1;

/// Where nothing is: the ports that were for diagnostics.
const NO_PORTS: core::ops::Range<u16> = 0x680..0x690;
/// Where nothing is, above the virtio windows.
const NO_MEMORY: usize = 0xd800_0000;

pub(super) fn flood(mut turn: impl FnMut(u32)) {
    say!("flooding");
    while serial::read().is_none() {
        for number in 0..TURNS {
            turn(number);
        }
    }
    say!("dry");
}

/// Accesses to ports with and without a device, of each width.
pub fn ports(_: &Context) {
    flood(|number| {
        let port = NO_PORTS.start + number as u16 % NO_PORTS.len() as u16;
        port::write_u8(port, number as u8);
        port::write_u16(port, number as u16);
        port::write_u32(port, number);
        let nothing = port::read_u32(port);
        assert_eq!(nothing, u32::MAX, "what is at {port:#x}?");
    });
}

/// Accesses to memory that is no device's.
pub fn memory(_: &Context) {
    flood(|number| mmio::write(NO_MEMORY + number as usize * 4, number));
}

/// Doorbells of every queue, and of none.
pub fn doorbells(_: &Context) {
    let mut device = Device::new(block::window());
    device.start(1);
    flood(|number| device.notify(number % 3));
}

/// Interrupts that nobody takes.
pub fn interrupts(_: &Context) {
    flood(|_| {
        port::write_u8(SERIAL_INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
        port::write_u8(SERIAL_INTERRUPT_ENABLE, 0);
    });
}

/// Text that nobody reads.
pub fn text(_: &Context) {
    flood(|_| port::write_u8(SERIAL_DATA, b'.'));
}
