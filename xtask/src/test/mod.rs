//! `cargo xtask test`.

mod report;
mod run;

use std::env;
use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use self::report::Report;
use self::run::Again;
use crate::cargo::{self, Executable};
use crate::distribution::{self, Distribution};
use crate::{command, debian_kernel, demo_image, lab, packages, progress, workspace};

/// Runs all tests.
///
/// Unit and integration tests run here. The end-to-end tests, which run Linux
/// in microVMs, run here too if the machine can do that, and in the lab if not.
/// The last line has the counts; a test that could not run has failed.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only test these packages, such as vmm or e2e, without the examples in
    /// their documentation
    #[arg(short, long = "package", value_name = "NAME")]
    packages: Vec<String>,
}

/// The package of end-to-end tests.
const END_TO_END: &str = "e2e";
/// Packages whose tests open /dev/kvm. Any kind of KVM will do.
const NEEDS_KVM: [&str; 2] = ["vmm", "exploit"];

/// Runs all tests and ends with their counts.
pub fn main(options: &Options) -> Result<u8> {
    let report = match test(options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error:#}");
            Report::of_failure("the tests could not be prepared")
        }
    };
    for skip in &report.skipped {
        let reason = skip.reason.as_deref().unwrap_or("it gives no reason");
        println!("skipped: {}: {reason}", skip.name);
    }
    for test in &report.unsteady {
        println!("unsteady: {test} failed once in the lab, and passed when run again");
    }
    if report.lost_labs > 0 {
        println!(
            "labs lost while tests ran: {} (see docs/lab.md)",
            report.lost_labs
        );
    }
    for failure in &report.failed {
        println!("failed: {failure}");
    }
    if report.hostile_cases > 0 {
        println!("hostile cases survived: {}", report.hostile_cases);
    }
    println!("{}", report.counts());
    Ok(u8::from(!report.is_success()))
}

fn test(options: &Options) -> Result<Report> {
    let wanted = |package: &str| {
        options.packages.is_empty() || options.packages.iter().any(|name| name == package)
    };
    packages::require(&packages::FOR_TESTS)?;
    packages::require(&packages::for_lab())?;
    debian_kernel::fetch()?;
    let executables: Vec<Executable> = build_tests(options)?;
    let (end_to_end, others): (Vec<_>, Vec<_>) = executables
        .into_iter()
        .partition(|executable| executable.package == END_TO_END);
    let no_kvm = !has_kvm();
    let (in_lab, here): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|executable| no_kvm && NEEDS_KVM.contains(&executable.package.as_str()));

    let mut report = run::here(&here, &[]);
    if options.packages.is_empty() {
        report.add(documentation());
    }
    if !in_lab.is_empty() {
        eprintln!("this machine has no /dev/kvm to open: tests that need it run in the lab");
        report.add(run::in_lab(&in_lab, &[], &lab::MachineOptions::default()));
    }
    if wanted(END_TO_END) {
        report.add(run_end_to_end(&end_to_end).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            not_run(&end_to_end)
        }));
    }
    Ok(report)
}

fn build_tests(options: &Options) -> Result<Vec<Executable>> {
    let step = progress::step("building the tests");
    let mut arguments: Vec<OsString> = ["test", "--no-run"].map(Into::into).into();
    if options.packages.is_empty() {
        arguments.push("--workspace".into());
    }
    for package in &options.packages {
        arguments.extend(["--package".into(), package.into()]);
    }
    let built = cargo::build(arguments, &step)?;
    Ok(built.into_iter().filter(|built| built.is_test).collect())
}

/// Runs the examples in the documentation, which only cargo can.
fn documentation() -> Report {
    let name = "documentation";
    let step = progress::step("testing the documentation's examples");
    let mut command = cargo::cargo();
    command.args(["test", "--doc", "--no-fail-fast", "--workspace"]);
    command.args(["--exclude", END_TO_END]);
    let mut printed = String::new();
    let ended = command::lines(&mut command, |line| {
        step.detail(line);
        printed.push_str(line);
        printed.push('\n');
    });
    drop(step);
    let report = Report::read(name, &printed, &Default::default(), ended.is_ok());
    if let Err(error) = ended {
        eprintln!("{error:#}");
    }
    eprintln!("{name}: {}", report.counts());
    report
}

/// Runs the end-to-end tests where Linux guests run.
fn run_end_to_end(executables: &[Executable]) -> Result<Report> {
    let distribution = distribution::build()?;
    let mut variables = end_to_end_variables(&distribution)?;
    if can_run_linux(&distribution) {
        eprintln!("this machine runs microVMs with Linux: the end-to-end tests run here");
        let path = env::var_os("PATH").unwrap_or_default();
        variables.push(("PATH".into(), lab::search_path(&path)));
        return Ok(run::here(executables, &variables));
    }
    eprintln!("this machine cannot run microVMs with Linux: the end-to-end tests run in the lab");
    let options = lab::MachineOptions::default();
    let mut report = run::in_lab(executables, &variables, &options);
    let again = |report, which| run::again_in_lab(report, which, executables, &variables, &options);
    // The lab after a lost one may be lost too; three in a row are no accident.
    for _ in 0..2 {
        if report.lost_labs > 0 {
            report = again(report, Again::Unfinished);
        }
    }
    Ok(again(report, Again::Failed))
}

/// What `tests/src/lib.rs` asks for.
fn end_to_end_variables(distribution: &Distribution) -> Result<Vec<(OsString, OsString)>> {
    let image = demo_image::fetch()?;
    let kernel = debian_kernel::fetch()?;
    let store = workspace::target_directory().join("test-store");
    let reference = image.reference();
    let step = progress::step("loading the test image");
    let mut load = Command::new(distribution.mote());
    load.args(["load", &reference]).env("MOTE_ROOT", &store);
    command::output(&mut load)?;
    drop(step);
    Ok(vec![
        ("MOTE_E2E_IMAGE".into(), reference.into()),
        ("MOTE_E2E_KERNEL".into(), kernel.image.into()),
        ("MOTE_ROOT".into(), store.into()),
    ])
}

/// Whether microVMs with Linux run on this machine itself.
pub fn can_run_linux(distribution: &Distribution) -> bool {
    let mut doctor = Command::new(distribution.mote());
    command::output(doctor.arg("doctor")).is_ok()
}

/// Whether /dev/kvm is there for us.
fn has_kvm() -> bool {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

/// The report on tests that never had a chance.
fn not_run(executables: &[Executable]) -> Report {
    let mut report = Report::default();
    for executable in executables {
        report.add(run::not_run(executable));
    }
    if executables.is_empty() {
        report.add(Report::of_failure("the end-to-end tests were not built"));
    }
    report
}
