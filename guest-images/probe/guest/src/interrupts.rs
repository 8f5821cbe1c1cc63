//! Interrupt handlers, the local APIC and the I/O APIC.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{mmio, port};

/// The masks of the two interrupt controllers of a PC, which deliver every
/// interrupt too, at vectors of their own, unless they are masked.
const LEGACY_MASKS: [u16; 2] = [0x21, 0xa1];

const LOCAL_APIC: usize = 0xfee0_0000;
const SPURIOUS_VECTOR: usize = 0x0f0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const COMMAND_PENDING: u32 = 1 << 12;
const SOFTWARE_ENABLE: u32 = 1 << 8;

const IO_APIC: usize = 0xfec0_0000;
const IO_APIC_SELECT: usize = 0x00;
const IO_APIC_WINDOW: usize = 0x10;
const FIRST_REDIRECTION: u32 = 0x10;

const EXCEPTIONS: usize = 32;
/// Vectors from here on count in [`count`], one for each global interrupt.
const FIRST_DEVICE_VECTOR: u32 = 32;
const DEVICE_VECTORS: usize = 32;
/// The last device vector, which no I/O APIC pin has.
const SPURIOUS: u32 = FIRST_DEVICE_VECTOR + 31;
const STUB_BYTES: usize = 16;
const KERNEL_CODE: u64 = 0x10;
/// A present 64-bit interrupt gate.
const INTERRUPT_GATE: u64 = 0x8e << 40;

#[repr(transparent)]
struct Table(UnsafeCell<[[u64; 2]; EXCEPTIONS + DEVICE_VECTORS]>);

// SAFETY: only processor 0 writes it, through `enable` and `remove_handlers`.
unsafe impl Sync for Table {}

unsafe extern "C" {
    static EXCEPTION_STUBS: u8;
    static INTERRUPT_STUBS: u8;
    static IDT: Table;
    static INTERRUPT_COUNTS: [AtomicU64; DEVICE_VECTORS];
}

fn gate(stub: u64) -> [u64; 2] {
    let low = (stub & 0xffff) | KERNEL_CODE << 16 | INTERRUPT_GATE | (stub & 0xffff_0000) << 32;
    [low, stub >> 32]
}

/// Installs the handlers and enables the local APIC of this processor.
pub fn enable() {
    let exceptions = &raw const EXCEPTION_STUBS as u64;
    let interrupts = &raw const INTERRUPT_STUBS as u64;
    let mut table = [[0; 2]; EXCEPTIONS + DEVICE_VECTORS];
    for (index, entry) in table.iter_mut().enumerate() {
        let stub = match index.checked_sub(EXCEPTIONS) {
            None => exceptions + (index * STUB_BYTES) as u64,
            Some(device) => interrupts + (device * STUB_BYTES) as u64,
        };
        *entry = gate(stub);
    }
    write_table(table);
    for controller in LEGACY_MASKS {
        port::write_u8(controller, 0xff);
    }
    enable_local_apic();
}

/// Lets this processor take interrupts and send them to others.
pub fn enable_local_apic() {
    mmio::write(LOCAL_APIC + SPURIOUS_VECTOR, SOFTWARE_ENABLE | SPURIOUS);
}

/// Makes the next exception a triple fault.
pub fn remove_handlers() {
    write_table([[0; 2]; EXCEPTIONS + DEVICE_VECTORS]);
}

fn write_table(table: [[u64; 2]; EXCEPTIONS + DEVICE_VECTORS]) {
    // SAFETY: `IDT` is as large as the table (`boot.S`) and only the processor
    // itself looks at it besides.
    unsafe { IDT.0.get().write_volatile(table) }
}

/// Connects global interrupt `gsi` to this processor: edge-triggered, active high.
pub fn connect(gsi: u32) {
    let redirection = FIRST_REDIRECTION + gsi * 2;
    for (register, value) in [
        (redirection + 1, 0),
        (redirection, FIRST_DEVICE_VECTOR + gsi),
    ] {
        mmio::write(IO_APIC + IO_APIC_SELECT, register);
        mmio::write(IO_APIC + IO_APIC_WINDOW, value);
    }
}

fn counter(gsi: u32) -> &'static AtomicU64 {
    // SAFETY: `boot.S` has room for so many counters, and writes them as the
    // processor would write an atomic.
    unsafe { &INTERRUPT_COUNTS[gsi as usize] }
}

/// How many interrupts `gsi` has raised.
pub fn count(gsi: u32) -> u64 {
    counter(gsi).load(Ordering::SeqCst)
}

/// Halts until `gsi` has raised another interrupt than the first `seen`.
pub fn wait_for_more(gsi: u32, seen: u64) {
    while count(gsi) == seen {
        halt_while(counter(gsi), seen);
    }
}

/// Halts until the next interrupt, unless `counter` no longer holds `seen`.
fn halt_while(counter: &AtomicU64, seen: u64) {
    // SAFETY: at this privilege level `hlt` faults, and the handler in `boot.S`
    // reads the counter, halts, and skips the instruction.
    unsafe {
        asm!("hlt", in("rdi") counter.as_ptr(), in("rsi") seen, options(nostack));
    }
}

/// Never comes back.
pub fn sleep_forever() -> ! {
    static NOTHING: AtomicU64 = AtomicU64::new(0);
    loop {
        halt_while(&NOTHING, 0);
    }
}

/// Sends the interrupt command `low` to the processor whose APIC id is `cpu`.
pub fn send(cpu: u32, low: u32) {
    mmio::write(LOCAL_APIC + COMMAND_HIGH, cpu << 24);
    mmio::write(LOCAL_APIC + COMMAND_LOW, low);
    while mmio::read(LOCAL_APIC + COMMAND_LOW) & COMMAND_PENDING != 0 {}
}

/// `boot.S` comes here after an exception.
#[unsafe(no_mangle)]
extern "C" fn fault(vector: u64, error_code: u64, rip: u64, cr2: u64) -> ! {
    panic!("exception {vector} (error code {error_code:#x}) at {rip:#x}, CR2 {cr2:#x}");
}
