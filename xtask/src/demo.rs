//! `cargo xtask demo`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::background::Background;
use crate::{demo_image, distribution, lab, packages, progress, test, workspace};

/// Runs a container image of Debian packages as a microVM.
///
/// Installs what is missing, builds the guest's kernel and mote, makes the image
/// (Python, nginx, Redis), loads it, and runs it: on this machine if it has
/// hardware KVM, in the lab if not.
#[derive(Debug, clap::Args)]
pub struct Options {}

/// Runs the demonstration and ends with its exit code.
pub fn main(_options: &Options) -> Result<u8> {
    // All at once: one question to apt, and one list to read. Whether the machine
    // can do without the lab is known for certain when mote is built.
    let for_lab = packages::for_lab();
    let mut needed: Vec<_> = packages::FOR_KERNEL
        .iter()
        .chain(&packages::FOR_DEMO_IMAGE)
        .collect();
    if !processor_has_virtualization() {
        needed.extend(&for_lab);
    }
    packages::require(needed)?;
    let image = Background::start(demo_image::fetch);
    let distribution = distribution::build()?;
    let image = image.wait()?;
    let store = workspace::target_directory().join("demo-store");
    let reference = image.reference();
    let step = progress::step("loading the image");
    let mut load = Command::new(distribution.mote());
    load.args(["load", &reference]).env("MOTE_ROOT", &store);
    crate::command::output(&mut load)?;
    drop(step);

    let arguments = ["run", "--rm", "--timing", &reference];
    if test::can_run_linux(&distribution) {
        eprintln!("This machine has hardware KVM: the microVM runs on it.");
        let mut run = Command::new(distribution.mote());
        let status = run
            .args(arguments)
            .env("MOTE_ROOT", &store)
            .status()
            .context("cannot run mote")?;
        return Ok(status
            .code()
            .and_then(|code| code.try_into().ok())
            .unwrap_or(1));
    }
    eprintln!(
        "This machine has no hardware KVM: the microVM runs in the lab, 15 to 30 times slower."
    );
    let mut args = vec![distribution.mote().into()];
    args.extend(arguments.map(Into::into));
    let mut request = lab::Request::new(args)?;
    request.env.push(("MOTE_ROOT".into(), store.into()));
    let ending = lab::run(
        &lab::MachineOptions::default(),
        &request,
        lab::Streams::inherit()?,
    )?;
    Ok(ending.exit_code())
}

/// Whether the processor says so. KVM may be missing all the same.
fn processor_has_virtualization() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
            .any(|(_, flags)| flags.split(' ').any(|flag| matches!(flag, "svm" | "vmx")))
    })
}
