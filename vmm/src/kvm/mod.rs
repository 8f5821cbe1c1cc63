//! The parts of a microVM that KVM runs.

pub mod handover;
pub mod pause;
pub mod vcpu;
pub mod vm;
