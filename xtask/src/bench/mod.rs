//! `cargo xtask bench`: builds what is measured, and runs the benchmarks, which
//! are a program of their own. Few need it, and it links what nobody else does.

mod image;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::background::Background;
use crate::{cargo, demo_image, distribution, packages, progress, test, workspace};

/// What has Linux guests, and so needs a kernel, an image, and perhaps the lab.
const WITH_LINUX: [&str; 3] = ["block", "image", "net"];

/// Measures mote beside its peers.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// What to measure, and how: `start exits memory block image net`, or --help for a list
    #[arg(
        value_name = "ARGUMENTS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<OsString>,
}

impl Options {
    /// Whether one of `names` is to be measured. The rest of the command line is read
    /// by the benchmarks alone.
    fn names(&self, names: &[&str]) -> bool {
        let asks_for_help = |argument: &OsString| argument == "--help" || argument == "-h";
        let mut arguments = self.arguments.iter();
        arguments
            .clone()
            .any(|word| names.iter().any(|name| word == name))
            && !arguments.any(asks_for_help)
    }
}

/// Becomes the program that measures; returns only if that fails.
pub fn main(options: &Options) -> Result<u8> {
    packages::require(&packages::FOR_BENCH)?;
    if options.names(&["net"]) {
        packages::require(&packages::FOR_BENCH_NET)?;
    }
    if options.names(&["image"]) {
        packages::require(&packages::FOR_BENCH_IMAGE)?;
    }
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
    let output = workspace::target_directory().join("bench");
    let mote_vmm = output.join("mote-vmm");
    std::fs::create_dir_all(&output)
        .with_context(|| format!("cannot make {}", output.display()))?;
    distribution::place(&path_of("mote-vmm")?, &mote_vmm)?;
    bench.env("MOTE_BENCH_VMM", mote_vmm);
    bench.env("MOTE_BENCH_OUTPUT", output);
    if let Some(qemu) = packages::find_program("qemu-system-x86_64") {
        bench.env("MOTE_BENCH_QEMU", qemu);
    }
    if options.names(&WITH_LINUX) {
        prepare_linux(&mut bench)?;
    }
    if options.names(&["image"]) {
        let image = Background::start(demo_image::fetch);
        bench.env("MOTE_BENCH_MOTE", distribution::build()?.mote());
        bench.env("MOTE_BENCH_IMAGE", image.wait()?.reference());
    }
    // In place of this process, so that signals reach it, which ends what it started.
    let failed = bench.args(&options.arguments).exec();
    Err(failed).context("cannot run mote-bench")
}

/// Says where the kernel and the image are, and where Linux guests run.
fn prepare_linux(bench: &mut Command) -> Result<()> {
    let image = Background::start(image::fetch);
    let distribution = distribution::build()?;
    bench.env("MOTE_BENCH_KERNEL", distribution.kernel());
    bench.env("MOTE_BENCH_ROOT", image.wait()?);
    if !test::can_run_linux(&distribution) {
        packages::require(&packages::for_lab())?;
        let own = std::env::current_exe().context("cannot find this program")?;
        bench.env("MOTE_BENCH_LAB", own);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        Options {
            arguments: arguments.iter().map(Into::into).collect(),
        }
    }

    #[test]
    fn what_linux_guests_need_is_made_only_where_one_is_asked_for() {
        assert!(options(&["start", "block", "--runs", "3"]).names(&WITH_LINUX));
        assert!(!options(&["start", "memory"]).names(&WITH_LINUX));
        assert!(!options(&["block", "--help"]).names(&WITH_LINUX));
    }
}
