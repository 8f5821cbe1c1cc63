//! Device registers in memory.

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads a register.
        pub fn $read(address: usize) -> $type {
            assert!(is_device(address), "{address:#x} is memory");
            // SAFETY: the address is mapped and no memory of this program is
            // there.
            unsafe { core::ptr::read_volatile(address as *const $type) }
        }

        /// Writes a register.
        pub fn $write(address: usize, value: $type) {
            assert!(is_device(address), "{address:#x} is memory");
            // SAFETY: as for reading.
            unsafe { core::ptr::write_volatile(address as *mut $type, value) }
        }
    };
}

/// Whether `address` lies between the end of low memory and 4 GiB.
fn is_device(address: usize) -> bool {
    (0xd000_0000..0x1_0000_0000).contains(&address)
}

access!(read_u8, write_u8, u8);
access!(read_u16, write_u16, u16);
access!(read, write, u32);
access!(read_u64, write_u64, u64);
