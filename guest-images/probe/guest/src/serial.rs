//! COM1, polled.

use core::fmt;

use crate::port;

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const LINE_STATUS: u16 = DATA + 5;
const DATA_READY: u8 = 1 << 0;

/// Prints.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            port::write_u8(DATA, byte);
        }
        Ok(())
    }
}

/// Prints a line on COM1.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        // Nothing here fails to print.
        let _ = writeln!($crate::serial::Serial, $($argument)*);
    }};
}

/// The next byte of input, if there is one.
pub fn read() -> Option<u8> {
    if port::read_u8(LINE_STATUS) & DATA_READY == 0 {
        return None;
    }
    Some(port::read_u8(DATA))
}

/// Waits for a byte of input, without halting.
pub fn wait() -> u8 {
    loop {
        if let Some(byte) = read() {
            return byte;
        }
    }
}

/// Asks for an interrupt whenever there is input.
pub fn enable_input_interrupt() {
    port::write_u8(INTERRUPT_ENABLE, 1);
}
