//! The node agent.

pub mod guest;
pub mod vm_process;
