//! The virtual machine monitor of mote: one process is one microVM.

pub mod event;
pub mod spec;
pub mod vsock_channel;
