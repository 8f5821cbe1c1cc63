//! A guest without an operating system that tries out the machine it runs on.
//!
//! `boot.S` brings it to privilege level 3, where it stays; `scenarios.rs` lists
//! what it can do; `friendly/` holds drivers that keep to the rules and
//! `hostile/` drivers that break them.
#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod arguments;
mod boot;
mod boot_params;
mod cpuid;
mod cpus;
mod friendly;
mod heap;
mod hostile;
mod interrupts;
mod machine;
mod memory_functions;
mod mmio;
#[path = "../../src/pattern.rs"]
mod pattern;
mod port;
mod power;
mod scenarios;
mod serial;
mod virtio;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let place = info.location().map_or(0, core::panic::Location::line);
    let file = info.location().map_or("?", core::panic::Location::file);
    say!("failed: {} ({file}:{place})", info.message());
    power::reset();
}
