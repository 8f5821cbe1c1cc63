//! Benchmarks of mote beside its peers, in the same run on the same machine.
//!
//! `cargo xtask bench` is how they are run; this library measures and reports.
//! `docs/benchmarks.md` says what each figure is.

pub mod block;
pub mod comparison;
pub mod elsewhere;
pub mod error;
pub mod exits;
pub mod footprint;
pub mod host;
pub mod image;
pub mod interruption;
pub mod linux;
pub mod memory;
pub mod monitor;
pub mod net;
pub mod plot;
pub mod start;
pub mod statistics;
