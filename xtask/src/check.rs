//! `cargo xtask check`.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, command, progress, workspace};

/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// A workspace of its own, whose programs run without an operating system.
const PROBE_GUESTS: &str = "guest-images/probe/guest";

/// Checks formatting, lints, and the licences and sources of dependencies.
#[derive(Debug, clap::Args)]
pub struct Options {}

/// Runs every check, the quick ones first.
pub fn main(_options: &Options) -> Result<u8> {
    let rustfmt = "fmt --all --check";
    let clippy = "clippy --workspace --all-targets -- -D warnings";
    for (name, arguments) in [("formatting", rustfmt), ("lints", clippy)] {
        let step = progress::step(format!("checking {name}"));
        for workspace in [workspace::root(), workspace::root().join(PROBE_GUESTS)] {
            let mut command = cargo::cargo();
            command.args(arguments.split(' ')).current_dir(workspace);
            command::lines(&mut command, |line| step.detail(line.trim()))?;
        }
        drop(step);
        eprintln!("{name}: ok");
    }
    let deny = cargo::tool("cargo-deny", CARGO_DENY, "which checks dependencies")?;
    let step = progress::step("checking dependencies");
    let mut command = Command::new(deny);
    // Not advisories: their database is a git repository on the network, and
    // what is published there tomorrow does not make today's change wrong.
    command.args(["--workspace", "check", "licenses", "bans", "sources"]);
    command::lines(command.current_dir(workspace::root()), |line| {
        step.detail(line)
    })?;
    drop(step);
    eprintln!("dependencies: ok");
    Ok(0)
}
