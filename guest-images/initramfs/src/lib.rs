//! What an initramfs is made of: a deterministic newc archive ([`cpio`]) and
//! the kernel modules it must carry, in the order they are loaded
//! ([`modules`]).

pub mod cpio;
pub mod modules;

pub use cpio::{Archive, CpioError, DeviceKind};
pub use modules::{Module, ModuleError, ModuleTree};
