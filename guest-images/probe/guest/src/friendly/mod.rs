//! Drivers that keep to the rules: those of the crate `virtio-drivers`.

pub mod block;
pub mod entropy;
pub mod net;
pub mod vsock;
