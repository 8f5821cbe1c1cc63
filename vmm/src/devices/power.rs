//! The power button, and the power switch: the sleep and reset registers of hardware-reduced ACPI
//! (ACPI 6.5, section 4.8.3.7) and the keyboard controller's reset line, which
//! kernels booted with `reboot=k` use.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::exit::{ExitLine, ExitReason};

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// How many ports the registers take.
pub const PORTS: u16 = 4;
/// What to write to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type that means "off", as `\_S5_` says.
pub const SLEEP_TYPE_OFF: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0x7;

/// The ACPI registers.
pub struct PowerRegisters {
    exit: Arc<ExitLine>,
}

impl PowerRegisters {
    /// Registers that end the microVM through `exit`.
    pub fn new(exit: Arc<ExitLine>) -> Self {
        Self { exit }
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(value) = data.first().copied() else {
            return;
        };
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        if offset == u64::from(SLEEP_CONTROL)
            && value & SLEEP_ENABLE != 0
            && sleep_type == SLEEP_TYPE_OFF
        {
            self.exit.pull(ExitReason::PoweredOff);
        } else if offset == u64::from(RESET) && value == RESET_VALUE {
            self.exit.pull(ExitReason::Reset);
        }
    }
}

/// The command port of a PC's keyboard controller.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// A keyboard controller with nothing but the reset line.
pub struct KeyboardReset {
    exit: Arc<ExitLine>,
}

impl KeyboardReset {
    /// A reset line that ends the microVM through `exit`.
    pub fn new(exit: Arc<ExitLine>) -> Self {
        Self { exit }
    }
}

impl BusDevice for KeyboardReset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status: both buffers empty, so that a kernel does not wait for it.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            self.exit.pull(ExitReason::Reset);
        }
    }
}

/// The power button, by which the host asks the guest to power off.
#[derive(Debug)]
pub struct PowerButton {
    line: EventFd,
}

impl PowerButton {
    /// A button on `line`, the irqfd of [`crate::arch::layout::POWER_BUTTON_GSI`].
    pub fn new(line: EventFd) -> Self {
        Self { line }
    }

    /// Presses it. What follows is up to the guest.
    pub fn press(&self) -> std::io::Result<()> {
        self.line.write(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sleep_type_5_with_the_enable_bit_powers_off() {
        let exit = ExitLine::new().unwrap();
        let power = PowerRegisters::new(exit.clone());
        power.write(0, &[SLEEP_TYPE_OFF << 2]);
        power.write(0, &[SLEEP_ENABLE]);
        power.write(1, &[SLEEP_ENABLE | SLEEP_TYPE_OFF << 2]);
        power.write(0, &[]);
        assert_eq!(exit.reason(), None);
        power.write(0, &[SLEEP_ENABLE | SLEEP_TYPE_OFF << 2]);
        assert_eq!(exit.reason(), Some(&ExitReason::PoweredOff));
    }

    #[test]
    fn the_first_reason_to_end_stays() {
        let exit = ExitLine::new().unwrap();
        KeyboardReset::new(exit.clone()).write(0, &[PULSE_RESET]);
        PowerRegisters::new(exit.clone()).write(0, &[SLEEP_ENABLE | SLEEP_TYPE_OFF << 2]);
        assert_eq!(exit.reason(), Some(&ExitReason::Reset));
    }
}
