//! Scenarios without virtio: boot, memory, processors, serial port, power.

use alloc::vec::Vec;

use crate::scenarios::Context;
use crate::{acpi, cpus, interrupts, mmio, port, power, say, serial};

const SERIAL_GSI: u32 = 4;
const END_OF_INPUT: u8 = 0x04;

/// Prints a line and powers off.
pub fn hello(_: &Context) {
    say!("hello");
}

/// Prints the command line.
pub fn command_line(context: &Context) {
    say!("{}", context.boot.command_line());
}

/// Prints what it reads, up to and without a control-D, halting in between.
pub fn echo(_: &Context) {
    interrupts::connect(SERIAL_GSI);
    serial::enable_input_interrupt();
    say!("ready");
    loop {
        let seen = interrupts::count(SERIAL_GSI);
        match serial::read() {
            Some(END_OF_INPUT) => return,
            Some(byte) => port::write_u8(0x3f8, byte),
            None => interrupts::wait_for_more(SERIAL_GSI, seen),
        }
    }
}

/// The port where a VMM that was made to be taken over is told where the code is.
const EXPLOIT_PORT: u16 = 0x700;

/// Has the VMM run the initrd, and says what came of it. Only a VMM that is made for
/// tests does so.
pub fn exploit(context: &Context) {
    let initrd = context.boot.initrd();
    crate::port::write_u32(EXPLOIT_PORT, initrd.as_ptr().addr() as u32);
    // The port reads as what the code returned; this, which no call returns, until then.
    const NOTHING_YET: u32 = 1 << 31;
    let result = loop {
        match crate::port::read_u32(EXPLOIT_PORT) {
            NOTHING_YET => {}
            result => break result as i32,
        }
    };
    say!("returned {result}");
}

/// Compares the initrd with the pattern.
pub fn initrd(context: &Context) {
    let initrd = context.boot.initrd();
    let seed = context.arguments.number("seed");
    assert_eq!(crate::pattern::difference(seed, 0, initrd), None);
    say!("initrd of {} bytes", initrd.len());
}

/// Says what the boot loader and the ACPI tables say.
pub fn tables(context: &Context) {
    assert!(context.boot.has_signatures());
    for range in context.boot.memory() {
        say!("memory {:#x} to {:#x}", range.start, range.end);
    }
    let tables = acpi::read(context.boot.rsdp());
    say!("{} processors", tables.cpus.len());
    say!("{} virtio devices", tables.virtio_devices);
    assert!(tables.cpus.iter().copied().eq(0..tables.cpus.len() as u8));
    assert_eq!(tables.virtio_devices, crate::virtio::devices().len());
}

/// Starts all other processors.
pub fn processors(context: &Context) {
    let count = acpi::read(context.boot.rsdp()).cpus.len();
    cpus::start(count as u32);
    say!("{count} processors work");
}

/// Counts without end: the other processors in memory, this one in lines.
pub fn count(context: &Context) {
    let count = acpi::read(context.boot.rsdp()).cpus.len();
    cpus::start_counting(count as u32);
    let mut line = 0_u64;
    loop {
        say!("{line} {}", cpus::count());
        line += 1;
    }
}

/// Prints `kib` KiB on the serial port, then waits for a byte from there.
pub fn chatter(context: &Context) {
    for _ in 0..context.arguments.number("kib") * 1024 {
        port::write_u8(0x3f8, b'.');
    }
    while serial::read().is_none() {}
}

/// Waits for the power button.
pub fn power_button(context: &Context) {
    const POWER_BUTTON_GSI: u32 = 1;
    assert!(acpi::read(context.boot.rsdp()).has("PWRB"));
    interrupts::connect(POWER_BUTTON_GSI);
    say!("ready");
    interrupts::wait_for_more(POWER_BUTTON_GSI, 0);
    say!("pressed");
}

/// Prints the VM generation id.
pub fn generation_id(context: &Context) {
    let id = acpi::read(context.boot.rsdp()).generation_id();
    say!("{id:032x}");
}

/// Writes to the first and the last page of every range of memory, and to some
/// between, and reads it all back.
pub fn memory(context: &Context) {
    const PAGES: u64 = 16;
    // What is mapped, and lies above this program, its heap and its stacks.
    const MAPPED: u64 = 8 << 30;
    const FREE: u64 = 32 << 20;
    let mut addresses = Vec::new();
    for range in context.boot.memory() {
        let (start, end) = (range.start.max(FREE), range.end.min(MAPPED));
        if start >= end {
            continue;
        }
        let step = ((end - start) / PAGES) & !0xfff;
        addresses.extend((0..PAGES).map(|index| start + index * step));
        addresses.push(end - 8);
    }
    for address in &addresses {
        // SAFETY: the boot loader says that there is memory, the page tables map
        // it, and nothing of this program is there.
        unsafe { (*address as *mut u64).write_volatile(!address) };
    }
    for address in &addresses {
        // SAFETY: as above.
        let value = unsafe { (*address as *const u64).read_volatile() };
        assert_eq!(value, !address, "at {address:#x}");
    }
    say!("{:#x} is the last", addresses.last().expect("memory"));
}

/// Reads and writes where nothing answers, in every width.
pub fn nothing_there(_: &Context) {
    const ADDRESS: usize = 0xe000_0000;
    const PORT: u16 = 0x500;
    mmio::write_u8(ADDRESS, 1);
    mmio::write_u16(ADDRESS, 1);
    mmio::write(ADDRESS, 1);
    mmio::write_u64(ADDRESS, 1);
    assert_eq!(mmio::read_u8(ADDRESS), u8::MAX);
    assert_eq!(mmio::read_u16(ADDRESS), u16::MAX);
    assert_eq!(mmio::read(ADDRESS), u32::MAX);
    assert_eq!(mmio::read_u64(ADDRESS), u64::MAX);
    port::write_u8(PORT, 1);
    port::write_u16(PORT, 1);
    port::write_u32(PORT, 1);
    assert_eq!(port::read_u8(PORT), u8::MAX);
    assert_eq!(port::read_u16(PORT), u16::MAX);
    assert_eq!(port::read_u32(PORT), u32::MAX);
    // Across the borders of a device's ports.
    port::write_u32(0x3f6, 0);
    port::write_u32(0x3fe, 0);
    port::write_u32(0x5fe, 0);
    say!("nothing there");
}

/// Halts for good.
pub fn idle(_: &Context) {
    say!("idle");
    interrupts::sleep_forever();
}

/// Resets through ACPI.
pub fn reset(_: &Context) {
    power::reset();
}

/// Resets through the keyboard controller.
pub fn keyboard_reset(_: &Context) {
    power::keyboard_reset();
}

/// Crashes.
pub fn triple_fault(_: &Context) {
    power::triple_fault();
}

/// Fails, to see that failures are seen.
pub fn fail(_: &Context) {
    assert_eq!(1 + 1, 3, "arithmetic");
}
