//! The parts of a microVM that KVM runs.

pub mod pause;
pub mod vcpu;
pub mod vm;
