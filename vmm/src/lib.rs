//! The virtual machine monitor of mote: one process is one microVM.
//!
//! [`spec`] is what the agent sends. [`config`] validates it once, at the edge;
//! nothing behind it sees the wire form. [`machine`] builds the microVM from
//! the configuration and runs it. Everything a guest can reach lies in
//! [`bus`] and [`devices`].

pub mod arch;
pub mod block;
pub mod boot;
pub mod bus;
pub mod config;
pub mod confinement;
pub mod control;
pub mod descriptors;
pub mod devices;
pub mod event;
pub mod event_loop;
pub mod exit;
pub mod fetch;
pub mod host_cpuid;
pub mod json_path;
pub mod kvm;
pub mod limits;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod panics;
pub mod probe;
pub mod seccomp;
pub mod signals;
pub mod spec;
pub mod timer;
pub mod vsock_channel;
