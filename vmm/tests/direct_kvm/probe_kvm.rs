//! `mote-vmm --probe-kvm`: what a KVM can run.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Output};

use rustix::io::FdFlags;
use vmm::probe::Report;

use crate::machine::{HOST_FAILURE, WRONG_USE, probe};

/// Runs it with `file` for `/dev/kvm`.
fn run(file: File) -> Output {
    let number = file.as_raw_fd();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mote-vmm"));
    command.args(["--probe-kvm", &number.to_string()]);
    // A copy in another test's child does no harm: nobody waits for its end.
    rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
    command.output().unwrap()
}

fn report(file: File) -> Report {
    let output = run(file);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_kvm_that_runs_guests_says_how_fast() {
    if probe("").is_none() {
        return;
    }
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let report = report(kvm.unwrap());
    assert_eq!((report.api_version, report.error.as_deref()), (12, None));
    assert!(report.ran);
    assert_ne!(report.cpl0_instructions_per_second, 0);
}

#[test]
fn what_is_not_kvm_has_run_nothing_and_says_why() {
    let report = report(File::open("/dev/null").unwrap());
    assert!(!report.ran);
    assert!(report.error.unwrap().contains("/dev/kvm"));
}

#[test]
fn it_may_be_given_as_standard_input_and_nobody_need_read_the_answer() {
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mote-vmm"));
        command.args(["--probe-kvm", "0"]);
        command.stdin(File::open("/dev/null").unwrap());
        command
    };
    let output = start().output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = start().stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(HOST_FAILURE), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cannot print"), "{text}");
}

#[test]
fn a_descriptor_that_is_not_open_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_mote-vmm"))
        .args(["--probe-kvm", "99"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(WRONG_USE), "{output:?}");
}
