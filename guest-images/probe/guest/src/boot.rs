//! The way in: `boot.S` at privilege level 0, then [`entered`] at level 3.

use core::arch::global_asm;

global_asm!(include_str!("boot.S"));

/// Every processor arrives here, with a stack of 64 KiB, interrupts enabled and
/// all memory and ports in reach.
#[unsafe(no_mangle)]
extern "C" fn entered(cpu: u32, boot_params: *const u8) -> ! {
    if cpu != 0 {
        crate::cpus::entered(cpu);
    }
    crate::interrupts::enable();
    // SAFETY: by the boot protocol, RSI points at `boot_params`, which stays
    // where it is and is not written by anyone.
    let boot = unsafe { crate::boot_params::BootParams::at(boot_params) };
    crate::scenarios::play(&boot);
    crate::power::off();
}
