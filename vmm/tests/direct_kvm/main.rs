//! The real `mote-vmm` with real guests: the bare-metal ones of `probe-guests`,
//! which run wherever there is a `/dev/kvm`, interpreted or not.

mod agent;
mod balloon;
mod block;
mod boot;
mod console;
mod control;
mod controller;
mod cpu_template;
mod end;
mod entropy;
mod fs;
mod hostile;
mod hung;
mod machine;
mod memory;
mod metrics;
mod net;
mod net_limits;
mod pause;
mod pmem;
mod probe_kvm;
#[path = "../../src/devices/virtio/fs/script.rs"]
#[allow(dead_code, reason = "unit tests look at what it has got")]
mod script;
mod serial;
mod served_file;
mod spec;
mod system_calls;
mod tap;
mod vsock;

/// For `script`, which finds it beside itself in the crate.
use vmm::devices::virtio::fs::message;
