//! Benchmarks of mote beside its peers, as a program. `cargo xtask bench` builds
//! what is measured and runs it.

mod given;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::comparison::Comparison;
use bench::error::BenchError;
use bench::{block, elsewhere, exits, image, interruption, memory, net, plot, start};
use clap::Parser;
use given::Given;
use indicatif::ProgressBar;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How often it says without a terminal what it is at.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// Turns of what of images has guests: a pull takes minutes.
const GUEST_RUNS: usize = 2;
/// As a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Measures mote beside its peers, in the same run on the same machine.
///
/// Each benchmark prints a report and writes target/bench/NAME.json, with every single
/// measurement, and NAME.svg. The monitors take turns. docs/benchmarks.md says what
/// each figure is and how to read it.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask bench",
    max_term_width = 100,
    after_help = "Examples:\n  \
        cargo xtask bench start exits memory\n  \
        cargo xtask bench memory --counts 1,100 --peer firecracker=/opt/firecracker\n  \
        cargo xtask bench exits --runs 30 --format json"
)]
struct Options {
    /// What to measure, one after another
    #[arg(value_name = "BENCHMARK", required = true)]
    benchmarks: Vec<Benchmark>,

    /// How many turns each monitor has [default: start 50, exits 10, image 5, all others 3]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    runs: Option<usize>,

    /// For `block` and `net`: the number of the first turn, where others are made already
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    first_turn: usize,

    /// For `memory`: how many machines at once
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = memory::COUNTS,
        value_parser = at_least_one)]
    counts: Vec<usize>,

    /// For what of `image` has guests: what was prepared
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    prepared: Option<PathBuf>,

    /// For `start` and `memory`: measure another monitor too; NAME is firecracker
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<Peer>,

    /// What is printed
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Benchmark {
    /// How fast a microVM starts, and what it costs while it idles
    Start,
    /// What leaving the guest costs: port I/O, MMIO, a doorbell
    Exits,
    /// What 1 to 500 idle microVMs cost in RSS, PSS and host memory
    Memory,
    /// What a disk does, by fio in a Linux guest
    Block,
    /// What taking an image in costs, and what verifying it at every read costs
    Image,
    /// What of it has guests
    #[value(hide = true)]
    ImageGuests,
    /// What a network device does, by iperf3 and requests to and from a Linux guest
    Net,
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
        Ok(0) => Err("at least one is needed".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("not a number".to_owned()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match measure_all(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref() {
                Some(BenchError::Interrupted) => ExitCode::from(INTERRUPTED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn measure_all(options: &Options) -> Result<()> {
    interruption::heed_signals().context("cannot watch for signals")?;
    // Each machine takes a few descriptors here.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit on descriptors")?;
    let given = Given::read(options)?;
    for (index, benchmark) in options.benchmarks.iter().enumerate() {
        if index > 0 {
            println!();
        }
        measure(*benchmark, options, &given)?;
    }
    Ok(())
}

/// Measures, prints, and writes the files.
fn measure(benchmark: Benchmark, options: &Options, given: &Given) -> Result<()> {
    let bar = ProgressBar::new_spinner();
    let mut said: Option<Instant> = None;
    let progress = |what: &str| {
        let silent = said.is_none_or(|said| said.elapsed() > PLAIN_INTERVAL);
        if bar.is_hidden() && silent {
            eprintln!("measuring {}: {what} …", benchmark.name());
            said = Some(Instant::now());
        }
        bar.set_message(format!("measuring {}: {what}", benchmark.name()));
        bar.tick();
    };
    let runs = options.runs.unwrap_or(benchmark.usual_runs());
    let programs = &given.programs;
    match benchmark {
        Benchmark::Start => {
            let report = start::run(programs, runs, progress);
            bar.finish_and_clear();
            let report = report?;
            print(options.format, &report, &report.to_json());
            let [json, svg] = files(&given.output, benchmark)?;
            write(&json, &report.to_json())?;
            start::write_plot(&report, &svg)?;
            say_written(&json, &svg);
            Ok(())
        }
        Benchmark::Exits => {
            let comparison = exits::run(programs, runs, progress);
            bar.finish_and_clear();
            report(&comparison?, benchmark, options, given)
        }
        Benchmark::Memory => {
            let comparison = memory::run(programs, &options.counts, runs, progress);
            bar.finish_and_clear();
            report(&comparison?, benchmark, options, given)
        }
        Benchmark::Image => {
            let (mote, reference) = given.image()?;
            let setup = image::Setup {
                mote,
                reference,
                directory: &given.output,
            };
            let outcome = measure_image(&setup, runs, options, given, progress);
            bar.finish_and_clear();
            let (comparison, guests) = outcome?;
            report(&comparison, benchmark, options, given)?;
            guests
        }
        Benchmark::Block | Benchmark::ImageGuests | Benchmark::Net => {
            let mut whole: Option<Comparison> = None;
            let prepared = options.prepared.as_deref();
            let outcome = measure_in_linux(
                benchmark, runs, options, given, prepared, progress, &mut whole,
            );
            bar.finish_and_clear();
            match whole {
                Some(mut whole) if whole.turns == runs => {
                    whole.add_peer_bar();
                    report(&whole, benchmark, options, given)?;
                }
                // Worth a look, but not a plot, nor a verdict.
                Some(part) if part.turns > 0 => {
                    print(options.format, &part, &part.to_json());
                    eprintln!("only {} of {runs} turns were made", part.turns);
                }
                _ => {}
            }
            outcome
        }
    }
}

/// Measures what has Linux guests. What is finished is in `whole`, whatever becomes of
/// the rest; where it is to be read by another, it is printed by the turn.
fn measure_in_linux(
    benchmark: Benchmark,
    runs: usize,
    options: &Options,
    given: &Given,
    prepared: Option<&Path>,
    progress: impl FnMut(&str),
    whole: &mut Option<Comparison>,
) -> Result<()> {
    let finished = |turn: Comparison| match whole {
        _ if elsewhere::has_arrived() => turn.write_line(std::io::stdout()),
        Some(whole) => whole.append(turn),
        None => {
            *whole = Some(turn);
            Ok(())
        }
    };
    if let Some(place) = given.place(benchmark, prepared) {
        return Ok(place.measure(benchmark.name(), runs, progress, finished)?);
    }
    let turns = options.first_turn..runs;
    if let (Benchmark::ImageGuests, Some(prepared)) = (benchmark, prepared) {
        let (mote, _) = given.image()?;
        return Ok(image::guests::run(
            mote, prepared, turns, progress, finished,
        )?);
    }
    let images = given.images.as_ref();
    let images = images.context("no images: run `cargo xtask bench`")?;
    match benchmark {
        Benchmark::Block => block::run(&given.programs, images, turns, progress, finished)?,
        _ => net::run(&given.programs, images, turns, progress, finished)?,
    }
    Ok(())
}

/// Measures what needs no guest, and then what does. What is finished is there, whatever
/// becomes of the guests.
fn measure_image(
    setup: &image::Setup<'_>,
    runs: usize,
    options: &Options,
    given: &Given,
    mut progress: impl FnMut(&str),
) -> Result<(Comparison, Result<()>)> {
    progress("preparing the images");
    let prepared = image::Prepared::new(setup)?;
    let mut comparison = prepared.measure(runs, &mut progress)?;
    progress("preparing what guests need");
    let directory = prepared.for_guests()?;
    let mut guests = None;
    let outcome = measure_in_linux(
        Benchmark::ImageGuests,
        runs.min(GUEST_RUNS),
        options,
        given,
        Some(directory),
        progress,
        &mut guests,
    );
    if let Some(guests) = guests.filter(|guests| guests.turns > 0) {
        image::add_guests(&mut comparison, guests);
    }
    image::add_bars(&mut comparison);
    Ok((comparison, outcome))
}

fn report(
    comparison: &Comparison,
    benchmark: Benchmark,
    options: &Options,
    given: &Given,
) -> Result<()> {
    print(options.format, comparison, &comparison.to_json());
    let [json, svg] = files(&given.output, benchmark)?;
    write(&json, &comparison.to_json())?;
    plot::write(comparison, &svg)?;
    say_written(&json, &svg);
    Ok(())
}

fn print(format: Format, table: &impl Display, json: &str) {
    match format {
        Format::Table => print!("{table}"),
        Format::Json => println!("{json}"),
    }
}

fn files(directory: &Path, benchmark: Benchmark) -> Result<[PathBuf; 2]> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(["json", "svg"].map(|kind| directory.join(format!("{}.{kind}", benchmark.name()))))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn say_written(json: &Path, svg: &Path) {
    eprintln!("written: {} and {}", json.display(), svg.display());
}

impl Benchmark {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Exits => "exits",
            Self::Memory => "memory",
            Self::Block => "block",
            Self::Image => "image",
            Self::ImageGuests => "image-guests",
            Self::Net => "net",
        }
    }

    fn usual_runs(self) -> usize {
        match self {
            Self::Start => 50,
            Self::Exits => 10,
            Self::Image => 5,
            Self::ImageGuests => GUEST_RUNS,
            Self::Memory | Self::Block | Self::Net => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, ValueEnum};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn files_have_the_names_benchmarks_are_asked_for_by() {
        for benchmark in Benchmark::value_variants() {
            let value = benchmark.to_possible_value().unwrap();
            assert_eq!(value.get_name(), benchmark.name());
        }
    }

    #[test]
    fn several_benchmarks_and_counts_are_taken_at_once() {
        let options = ["bench", "start", "memory", "--counts", "1,20"];
        let options = Options::try_parse_from(options).unwrap();
        assert_eq!(options.benchmarks, [Benchmark::Start, Benchmark::Memory]);
        assert_eq!(options.counts, [1, 20]);
        assert!(Options::try_parse_from(["bench"]).is_err());
        assert!(Options::try_parse_from(["bench", "memory", "--counts", "0"]).is_err());
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
