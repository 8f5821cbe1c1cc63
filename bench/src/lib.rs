//! Benchmarks of mote beside its peers, in the same run on the same machine.
//!
//! `cargo xtask bench` is how they are run; this library measures and reports.
//! `docs/benchmarks.md` says what each figure is.

pub mod comparison;
pub mod error;
pub mod exits;
pub mod footprint;
pub mod host;
pub mod interruption;
pub mod memory;
pub mod monitor;
pub mod plot;
pub mod start;
pub mod statistics;
