//! The ways to end.

use crate::{interrupts, port};

/// The registers of hardware-reduced ACPI, as the FADT of mote has them.
const SLEEP_CONTROL: u16 = 0x600;
const RESET: u16 = 0x602;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_OFF: u8 = 5;
const RESET_VALUE: u8 = 1;
/// A PC's keyboard controller and its command to pull the reset line.
const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// Powers off.
pub fn off() -> ! {
    port::write_u8(SLEEP_CONTROL, SLEEP_ENABLE | SLEEP_TYPE_OFF << 2);
    interrupts::sleep_forever();
}

/// Resets through ACPI.
pub fn reset() -> ! {
    port::write_u8(RESET, RESET_VALUE);
    interrupts::sleep_forever();
}

/// Resets through the keyboard controller.
pub fn keyboard_reset() -> ! {
    port::write_u8(KEYBOARD_COMMAND, PULSE_RESET);
    interrupts::sleep_forever();
}

/// Faults where no handler is, and none for that.
pub fn triple_fault() -> ! {
    interrupts::remove_handlers();
    // SAFETY: an undefined instruction does nothing but fault.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
