//! Benchmarks of mote beside its peers, in the same run on the same machine.
//!
//! `cargo xtask bench` is how they are run; this library measures and reports.

pub mod start;
pub mod statistics;
