//! Benchmarks of mote beside its peers, as a program. `cargo xtask bench` builds
//! what is measured and runs it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result};
use bench::start;
use clap::Parser;
use indicatif::ProgressBar;

/// Measures mote beside its peers.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask bench",
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

/// What `cargo xtask bench` says, and not who runs it: in the environment.
#[derive(Debug)]
struct Given {
    /// The `mote-vmm` to measure, a release build.
    mote_vmm: PathBuf,
    /// QEMU, if there is one.
    qemu: Option<PathBuf>,
    /// The directory where files are written.
    output: PathBuf,
}

impl Given {
    fn read() -> Result<Self> {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        let needed = |name| {
            path(name).with_context(|| format!("{name} is not set: run `cargo xtask bench`"))
        };
        Ok(Self {
            mote_vmm: needed("MOTE_BENCH_VMM")?,
            qemu: path("MOTE_BENCH_QEMU"),
            output: needed("MOTE_BENCH_OUTPUT")?,
        })
    }
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Start(StartOptions),
}

/// Measures how fast a microVM starts and what it costs while it idles.
///
/// A bare-metal guest with 128 MiB and one vCPU is started over and over by each
/// monitor in turn, with direct KVM; software KVM will do. Besides the report,
/// target/bench/start.json and start.svg are written.
#[derive(Debug, clap::Args)]
struct StartOptions {
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

fn main() -> ExitCode {
    let result = match Options::parse().command {
        Command::Start(options) => measure_starts(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints, and writes the files.
fn measure_starts(options: &StartOptions) -> Result<()> {
    let given = Given::read()?;
    let what = start::Options {
        mote_vmm: given.mote_vmm,
        qemu: given.qemu,
        firecracker: options
            .peers
            .last()
            .map(|Peer::Firecracker(path)| path.clone()),
        runs: options.runs,
    };
    let progress = ProgressBar::new_spinner();
    if progress.is_hidden() {
        eprintln!("measuring starts …");
    }
    let report = start::run(&what, |what| {
        progress.set_message(format!("measuring starts: {what}"));
        progress.tick();
    });
    progress.finish_and_clear();
    let report = report?;
    match options.format {
        Format::Table => print!("{report}"),
        Format::Json => println!("{}", report.to_json()),
    }
    write_files(&report, &given.output)
}

fn write_files(report: &start::Report, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)
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
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

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
