//! `cargo xtask fuzz`.

mod report;
mod run;

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{cargo, command, progress, workspace};
use report::Outcome;
use run::Plan;

/// The version of cargo-fuzz that the targets are built by.
const CARGO_FUZZ: &str = "0.13.2";
/// What cargo-fuzz builds for: it gives the target by name.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The exit code of a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Feeds hostile input to everything that reads some.
///
/// Each target of `fuzz/` runs for a while from its corpus, one on each processor.
/// What it finds that reaches new code is kept for the next time, in the directory
/// fuzz beside what cargo builds; the seeds in the repository stay as they are.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only run these, such as block or spec
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// A line for each target
    Table,
    /// A JSON document
    Json,
}

/// Builds all targets, runs those asked for, and prints what came of it.
pub fn main(options: &Options) -> Result<u8> {
    let targets = chosen(&all_targets()?, &options.targets)?;
    let plan = Plan {
        programs: build()?,
        seeds: workspace::root().join("fuzz/corpus"),
        output: output(),
        time: Duration::from_secs(options.seconds.into()),
    };
    let Some(outcomes) = run::all(&plan, &targets)? else {
        eprintln!("interrupted: every target was ended");
        return Ok(INTERRUPTED);
    };
    match options.format {
        Format::Table => print!("{}", report::table(&outcomes)),
        Format::Json => println!("{:#}", report::json(&outcomes)),
    }
    for outcome in &outcomes {
        if let Some(story) = outcome.failure_story() {
            eprintln!("{story}");
        }
    }
    Ok(u8::from(outcomes.iter().any(Outcome::failed)))
}

/// Where fuzzing writes: what it builds, finds and logs.
fn output() -> PathBuf {
    workspace::target_directory().join("fuzz")
}

/// The names of all targets, in order.
fn all_targets() -> Result<Vec<String>> {
    let directory = workspace::root().join("fuzz/fuzz_targets");
    let cannot_list = || format!("cannot list the fuzz targets in {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(cannot_list)? {
        let path = entry.with_context(cannot_list)?.path();
        if path.extension() == Some(OsStr::new("rs"))
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Those of `all` that are `wanted`; all of them if none is.
fn chosen(all: &[String], wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!(
            "there is no fuzz target {unknown:?}; there are {}",
            all.join(", ")
        );
    }
    let is_wanted = |name: &&String| wanted.is_empty() || wanted.contains(name);
    Ok(all.iter().filter(is_wanted).cloned().collect())
}

/// Builds every target; returns the directory of their programs.
fn build() -> Result<PathBuf> {
    let cargo_fuzz = cargo::tool("cargo-fuzz", CARGO_FUZZ, "which builds fuzz targets")?;
    let step = progress::step("building the fuzz targets");
    let directory = output().join("build");
    let mut build = Command::new(cargo_fuzz);
    build
        .args(["fuzz", "build", "--fuzz-dir", "fuzz", "--target-dir"])
        .arg(&directory)
        .current_dir(workspace::root())
        // The caller's cargo and toolchain set these for this process.
        .env_remove("CARGO")
        .env_remove("CARGO_MANIFEST_DIR")
        // The sanitizer and its coverage are not stable yet: what they are called may
        // change with the compiler, and then this fails to build.
        .env("RUSTC_BOOTSTRAP", "1");
    command::lines(&mut build, |line| step.detail(line.trim()))?;
    Ok(directory.join(TRIPLE).join("release"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_target_has_a_program_and_seeds() {
        let manifest = fs::read_to_string(workspace::root().join("fuzz/Cargo.toml")).unwrap();
        let targets = all_targets().unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            assert!(
                manifest.contains(&format!("name = \"{target}\"\n")),
                "{target}"
            );
            let seeds = workspace::root().join("fuzz/corpus").join(&target);
            let count = fs::read_dir(seeds).map_or(0, Iterator::count);
            assert!(count > 0, "{target} has no seeds");
        }
    }

    #[test]
    fn without_names_all_targets_run_and_unknown_names_are_told() {
        let all = names(&["block", "net", "spec"]);
        assert_eq!(chosen(&all, &[]).unwrap(), all);
        assert_eq!(
            chosen(&all, &names(&["spec", "block"])).unwrap(),
            names(&["block", "spec"])
        );
        let error = chosen(&all, &names(&["disk"])).unwrap_err().to_string();
        assert!(
            error.contains("\"disk\"") && error.contains("block, net, spec"),
            "{error}"
        );
    }
}
