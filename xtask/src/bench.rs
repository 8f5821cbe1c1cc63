//! `cargo xtask bench`: builds what is measured, and runs the benchmarks, which
//! are a program of their own. Few need it, and it links what nobody else does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cargo, packages, progress, workspace};

/// Measures mote beside its peers.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// What to measure, and how: `start exits memory`, or --help for a list
    #[arg(
        value_name = "ARGUMENTS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<OsString>,
}

/// Runs the benchmarks and ends with their exit code.
pub fn main(options: &Options) -> Result<u8> {
    packages::require(&packages::FOR_BENCH)?;
    let step = progress::step("building the benchmarks");
    let arguments = "build --release -p vmm --bin mote-vmm -p bench --bin mote-bench";
    let built = cargo::build(arguments.split(' '), &step)?;
    drop(step);
    let path_of = |target: &str| -> Result<PathBuf> {
        let program = built.iter().find(|program| program.target == target);
        let program = program.with_context(|| format!("cargo has built no {target}"))?;
        Ok(program.path.clone())
    };
    let mut bench = Command::new(path_of("mote-bench")?);
    bench.env("MOTE_BENCH_VMM", path_of("mote-vmm")?);
    let output = workspace::target_directory().join("bench");
    bench.env("MOTE_BENCH_OUTPUT", output);
    if let Some(qemu) = packages::find_program("qemu-system-x86_64") {
        bench.env("MOTE_BENCH_QEMU", qemu);
    }
    let status = bench.args(&options.arguments).status();
    let code = status.context("cannot run mote-bench")?.code();
    Ok(code.and_then(|code| code.try_into().ok()).unwrap_or(1))
}
