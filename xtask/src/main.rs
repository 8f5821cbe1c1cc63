//! The commands a developer of mote runs: `cargo xtask COMMAND`.

mod cache;
mod command;
mod debian_kernel;
mod lab;
mod packages;
mod progress;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Builds, tests and demonstrates mote.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
enum Xtask {
    Lab(lab::Options),
}

fn main() -> ExitCode {
    if lab::is_init() {
        lab_init::run();
    }
    let result = match Xtask::parse() {
        Xtask::Lab(options) => lab::main(options),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
