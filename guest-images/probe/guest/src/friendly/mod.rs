//! Drivers that keep to the rules: those of the crate `virtio-drivers`, and what it
//! does not know by hand.

pub mod balloon;
pub mod block;
pub mod console;
pub mod discard;
pub mod entropy;
pub mod fs;
pub mod net;
pub mod pmem;
pub mod vsock;
