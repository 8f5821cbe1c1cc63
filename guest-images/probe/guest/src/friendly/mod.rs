//! Drivers that keep to the rules: those of the crate `virtio-drivers`, and for
//! the balloon, which it has none for, one that drives by hand.

pub mod balloon;
pub mod block;
pub mod entropy;
pub mod vsock;
