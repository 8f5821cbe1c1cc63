//! `cargo xtask bench`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use bench::start;

use crate::{cargo, packages, progress, workspace};

/// Measures mote beside its peers.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Start(StartOptions),
}

/// Measures how fast a microVM starts and what it costs while it idles.
///
/// A bare-metal guest with 128 MiB and one vCPU is started over and over by each
/// monitor in turn, with direct KVM; software KVM will do. Besides the report,
/// target/bench/start.json and start.svg are written.
#[derive(Debug, clap::Args)]
pub struct StartOptions {
    /// How often each monitor starts the guest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = at_least_one)]
    runs: usize,

    /// Measure another monitor too; NAME is firecracker
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<Peer>,

    /// What is printed
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs, with every single measurement
    Json,
}

/// Another monitor: what it is, and its program.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Peer {
    Firecracker(PathBuf),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("firecracker", path)) if !path.is_empty() => Ok(Self::Firecracker(path.into())),
            Some((name, _)) if name != "firecracker" => {
                Err(format!("{name} is unknown; only firecracker is known"))
            }
            _ => Err("write it as firecracker=PATH".to_owned()),
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one run is needed".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("not a number".to_owned()),
    }
}

/// Measures, prints, and writes the files.
pub fn main(command: &Command) -> Result<u8> {
    let Command::Start(options) = command;
    packages::require(&packages::FOR_BENCH)?;
    let mote_vmm = build_mote_vmm()?;
    let firecracker = options.peers.last();
    let options_of_start = start::Options {
        mote_vmm,
        qemu: packages::find_program("qemu-system-x86_64"),
        firecracker: firecracker.map(|Peer::Firecracker(path)| path.clone()),
        runs: options.runs,
    };
    let step = progress::step("measuring starts");
    let report = start::run(&options_of_start, |what| step.detail(what))?;
    drop(step);
    match options.format {
        Format::Table => print!("{report}"),
        Format::Json => println!("{}", report.to_json()),
    }
    write_files(&report)?;
    Ok(0)
}

fn build_mote_vmm() -> Result<PathBuf> {
    let step = progress::step("building mote-vmm");
    let arguments = [
        "build",
        "--release",
        "--package",
        "vmm",
        "--bin",
        "mote-vmm",
    ];
    cargo::build(arguments, &step)?
        .into_iter()
        .find(|built| built.target == "mote-vmm")
        .map(|built| built.path)
        .context("cargo does not say where it has put mote-vmm")
}

fn write_files(report: &start::Report) -> Result<()> {
    let directory = workspace::target_directory().join("bench");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let (json, plot) = (directory.join("start.json"), directory.join("start.svg"));
    std::fs::write(&json, report.to_json())
        .with_context(|| format!("cannot write {}", json.display()))?;
    start::write_plot(report, &plot)?;
    eprintln!("written: {} and {}", json.display(), plot.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_with_their_program() {
        let peer = "firecracker=/opt/a=b".parse();
        assert_eq!(peer, Ok(Peer::Firecracker("/opt/a=b".into())));
        for wrong in ["firecracker", "firecracker=", "crosvm=/bin/crosvm", ""] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_runs_are_too_few() {
        assert_eq!(at_least_one("50"), Ok(50));
        for wrong in ["0", "-1", "many"] {
            assert!(at_least_one(wrong).is_err(), "{wrong}");
        }
    }
}
