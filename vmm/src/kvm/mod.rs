//! The parts of a microVM that KVM runs.

pub mod vcpu;
pub mod vm;
