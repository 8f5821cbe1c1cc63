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
mod serial;
mod served_file;
mod spec;
mod system_calls;
mod tap;
mod vsock;
