//! x86-64: where things stand in guest memory and what a vCPU starts with.

pub mod acpi;
pub mod cpuid;
pub mod layout;
pub mod registers;
