//! Port I/O.

use core::arch::asm;

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads from a port.
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: a port access touches no memory; what a device does in
            // answer it does by its own rules, through memory given to it.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nostack, preserves_flags));
            }
            value
        }

        /// Writes to a port.
        pub fn $write(port: u16, value: $type) {
            // SAFETY: as for reading.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

access!(read_u8, write_u8, u8, "al");
access!(read_u16, write_u16, u16, "ax");
access!(read_u32, write_u32, u32, "eax");
