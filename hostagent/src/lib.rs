//! The node agent.
//!
//! Image: reference → [`image`] → [`store`] → [`disk`] → a microVM. The command
//! `mote` is the binary of this package.

pub mod assets;
pub mod config_file;
pub mod control;
pub mod disk;
pub mod doctor;
pub mod guest;
pub mod guest_kernel;
pub mod image;
pub mod io_limits;
pub mod lazy;
pub mod network;
pub mod open;
pub mod peer;
pub mod registry;
pub mod running;
mod runtime;
pub mod size;
pub mod stats;
pub mod stop_signal;
pub mod store;
pub mod trust;
pub mod vm_process;
pub mod volume;
pub mod workload;
