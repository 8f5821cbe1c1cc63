//! `cargo xtask check`.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, command, progress, workspace};

/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// Workspaces of their own: programs that run without an operating system, and those
/// that are built with a sanitizer.
const PROBE_GUESTS: &str = "guest-images/probe/guest";
const FUZZ: &str = "fuzz";

/// Checks formatting, lints, and the licences and sources of dependencies.
#[derive(Debug, clap::Args)]
pub struct Options {}

/// Runs every check, the quick ones first.
pub fn main(_options: &Options) -> Result<u8> {
    let rustfmt = "fmt --all --check";
    let clippy = "clippy --workspace --all-targets -- -D warnings";
    for (name, arguments) in [("formatting", rustfmt), ("lints", clippy)] {
        let step = progress::step(format!("checking {name}"));
        for workspace in ["", PROBE_GUESTS, FUZZ] {
            let mut command = cargo::cargo();
            command.args(arguments.split(' '));
            if workspace == FUZZ && std::env::var_os("CARGO_TARGET_DIR").is_none() {
                // What it depends on is there already, most of it.
                command.env("CARGO_TARGET_DIR", workspace::root().join("target"));
            }
            command.current_dir(workspace::root().join(workspace));
            command::lines(&mut command, |line| step.detail(line.trim()))?;
        }
        drop(step);
        eprintln!("{name}: ok");
    }
    let deny = cargo::tool("cargo-deny", CARGO_DENY, "which checks dependencies")?;
    let step = progress::step("checking dependencies");
    for workspace in ["", FUZZ] {
        let manifest = workspace::root().join(workspace).join("Cargo.toml");
        let mut command = Command::new(&deny);
        command.arg("--manifest-path").arg(manifest);
        command.args(["--config", "deny.toml", "--workspace", "check"]);
        // Not advisories: their database is a git repository on the network, and
        // what is published there tomorrow does not make today's change wrong.
        command.args(["licenses", "bans", "sources"]);
        command::lines(command.current_dir(workspace::root()), |line| {
            step.detail(line)
        })?;
    }
    drop(step);
    eprintln!("dependencies: ok");
    Ok(0)
}
