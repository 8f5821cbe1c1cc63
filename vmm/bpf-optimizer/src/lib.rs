//! Makes a classic BPF program shorter that returns the same for everything.
//!
//! The kernel translates a filter of system calls, and tries it on each number there
//! is, when a thread installs it. Both take time for each instruction, on the way to
//! a guest's first one. What seccompiler writes is a chain of blocks with jumps to
//! jumps, each with a load and two returns of its own; a third of it is needed.

mod graph;
mod layout;

use seccompiler::{BpfProgram, sock_filter};

/// A program of at most as many instructions that returns the same as `program`, whatever
/// it is run on. Returns `program` itself where it has instructions that a filter of
/// system calls may have but seccompiler does not write, or is too long to be laid out
/// anew.
pub fn optimize(program: &[sock_filter]) -> BpfProgram {
    graph::read(program)
        .and_then(|graph| layout::write(&graph))
        .filter(|shorter| shorter.len() <= program.len())
        .unwrap_or_else(|| program.to_vec())
}

#[cfg(test)]
mod tests;
