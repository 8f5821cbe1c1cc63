//! What kind of KVM there is, found by running a tiny guest.
//!
//! A module's name or the mere device says little: some cloud machines have a
//! `/dev/kvm` that interprets guest kernel code, on which no Linux boots. Only
//! `mote-vmm` makes virtual machines; it is given the device and reports one line.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use vmm::probe::Report;

use super::{Check, Finding, Host};

/// The check.
pub const CHECK: Check = Check {
    name: "kvm",
    purpose: "runs the guests",
    required: true,
    run,
};

/// How long the probe may take. On an interpreting KVM it takes a second.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The longest report.
const MAX_REPORT_BYTES: u64 = 64 << 10;

const LAB: &str = "use `cargo xtask lab -- mote …`, which emulates a machine that can, or a machine with nested virtualization or bare metal";

/// Kinds of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvmKind {
    /// Guest kernel code runs on the CPU.
    Hardware,
    /// Guest kernel code is interpreted and lacks instructions Linux needs.
    Software,
    /// There is none, or it runs nothing.
    None,
}

fn run(host: &Host) -> Finding {
    let device = host.path("/dev/kvm");
    let (kind, finding) = match File::options().read(true).write(true).open(&device) {
        Err(error) => (KvmKind::None, closed(host, &error)),
        Ok(device) => match host.assets.vmm() {
            Ok(vmm) => match probe(&vmm, device) {
                Ok(report) => judge(&report),
                Err(error) => (
                    KvmKind::None,
                    Finding::missing(
                        format!("/dev/kvm is there, but mote-vmm could not try it: {error}"),
                        format!(
                            "check that {} is the mote-vmm of this version",
                            vmm.display()
                        ),
                    ),
                ),
            },
            Err(_) => (
                KvmKind::None,
                Finding::missing(
                    "/dev/kvm is there, but there is no mote-vmm to try it with",
                    "install mote-vmm beside mote, or set MOTE_VMM to its path",
                ),
            ),
        },
    };
    Finding {
        kvm: Some(kind),
        ..finding
    }
}

/// Why there is no device to open.
fn closed(host: &Host, error: &io::Error) -> Finding {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Finding::missing(
            "/dev/kvm is there, but may not be opened",
            "run as root, or add yourself to the group kvm",
        ),
        io::ErrorKind::NotFound => {
            let flags = host.read("/proc/cpuinfo").unwrap_or_default();
            let module = match cpu_extension(&flags) {
                Some("vmx") => Some("kvm_intel"),
                Some("svm") => Some("kvm_amd"),
                _ => None,
            };
            match module {
                Some(module) => Finding::missing(
                    "there is no /dev/kvm, but the CPU has virtualization",
                    format!(
                        "load the module: modprobe {module}; if that fails, enable virtualization in the firmware"
                    ),
                ),
                None => Finding::missing(
                    "there is no /dev/kvm, and the CPU shows neither svm nor vmx",
                    LAB,
                ),
            }
        }
        _ => Finding::missing(
            format!("/dev/kvm cannot be opened: {error}"),
            "see the kernel log for why KVM did not start",
        ),
    }
}

/// `svm` or `vmx`, if the CPU has it.
fn cpu_extension(cpuinfo: &str) -> Option<&str> {
    let flags = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "flags").then_some(value)
    })?;
    flags
        .split_whitespace()
        .find(|flag| matches!(*flag, "svm" | "vmx"))
}

/// Lets `mote-vmm` run its tiny guests on an open `/dev/kvm`, which is passed as
/// standard input.
fn probe(vmm: &Path, device: File) -> io::Result<Report> {
    let mut child = Command::new(vmm)
        .args(["--probe-kvm", "0"])
        .stdin(device)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let report = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("it has no output"))
        .and_then(|output| read_until(output, Instant::now() + TIMEOUT));
    // It is done, or it is to be.
    let _ = child.kill();
    let status = child.wait()?;
    let report = report?;
    serde_json::from_slice(&report)
        .map_err(|_| io::Error::other(format!("it printed no report ({status})")))
}

fn read_until(mut output: impl Read + AsFd, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut waited = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
        match poll(&mut waited, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let read = output.read(&mut buffer)?;
        if read == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&buffer[..read]);
        if bytes.len() as u64 > MAX_REPORT_BYTES {
            return Err(io::Error::other("its report is too long"));
        }
    }
}

/// What a report means.
fn judge(report: &Report) -> (KvmKind, Finding) {
    let speed = speed(report.cpl0_instructions_per_second);
    if !report.ran {
        let why = report.error.as_deref().unwrap_or("no reason was given");
        let why: String = why.chars().take(300).collect();
        let found = format!("/dev/kvm is there, but no guest ran: {why}");
        return (KvmKind::None, Finding::missing(found, LAB));
    }
    if !report.missing_instructions.is_empty() {
        let missing: Vec<_> = report
            .missing_instructions
            .iter()
            .take(10)
            .map(|name| name.chars().take(30).collect::<String>())
            .collect();
        let found = format!(
            "software KVM: guest kernel code is interpreted at {speed} instructions/s without {}; Linux does not boot",
            missing.join(", ")
        );
        return (KvmKind::Software, Finding::missing(found, LAB));
    }
    let found = format!(
        "hardware KVM, API {}, {speed} guest kernel instructions/s",
        report.api_version
    );
    (KvmKind::Hardware, Finding::ok(found))
}

fn speed(per_second: u64) -> String {
    match per_second {
        1_000_000_000.. => format!("{:.1} billion", per_second as f64 / 1e9),
        _ => format!("{:.1} million", per_second as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{empty_host, put};
    use super::super::{Assets, Status};
    use super::*;

    /// A machine whose mote-vmm is a shell script.
    fn host_with_vmm(script: &str) -> (tempfile::TempDir, Host) {
        let (directory, mut host) = empty_host();
        put(&host, "/dev/kvm", "");
        put(&host, "/assets/text", &format!("#!/bin/sh\n{script}\n"));
        let vmm = host.path("/assets/mote-vmm");
        // By another process: a test that forks while this one has the file open
        // for writing would keep it from being executed (ETXTBSY).
        let mut install = std::process::Command::new("install");
        install.arg("-m755").arg(host.path("/assets/text"));
        assert!(install.arg(&vmm).status().unwrap().success());
        host.assets = Assets::in_directory(vmm.parent().unwrap());
        (directory, host)
    }

    fn report(ran: bool, missing: &[&str], error: Option<&str>) -> String {
        let report = serde_json::json!({
            "api_version": 12,
            "ran": ran,
            "missing_instructions": missing,
            "cpl0_instructions_per_second": 1_780_000,
            "error": error,
        });
        format!("echo '{report}'")
    }

    fn kind_and_finding(script: &str) -> (KvmKind, Finding) {
        let (_directory, host) = host_with_vmm(script);
        let finding = run(&host);
        (finding.kvm.unwrap(), finding)
    }

    #[test]
    fn hardware_is_what_runs_and_lacks_nothing() {
        let (kind, finding) = kind_and_finding(&report(true, &[], None));
        assert_eq!(kind, KvmKind::Hardware);
        assert_eq!(finding.status, Status::Ok);
    }

    #[test]
    fn software_is_what_runs_and_lacks_instructions() {
        let (kind, finding) = kind_and_finding(&report(true, &["popcnt", "xrstor"], None));
        assert_eq!(kind, KvmKind::Software);
        assert_eq!(finding.status, Status::Missing);
        assert!(finding.found.contains("popcnt, xrstor"), "{finding:?}");
        assert!(finding.found.contains("1.8 million"), "{finding:?}");
    }

    #[test]
    fn none_is_what_does_not_run_with_the_reason() {
        let (kind, finding) = kind_and_finding(&report(false, &[], Some("no vCPU")));
        assert_eq!(kind, KvmKind::None);
        assert!(finding.found.contains("no vCPU"), "{finding:?}");
    }

    #[test]
    fn a_vmm_that_reports_nothing_sensible_is_not_believed() {
        for script in ["true", "exit 1", "echo '{}'", "echo hello"] {
            let (kind, finding) = kind_and_finding(script);
            assert_eq!(kind, KvmKind::None, "{script}");
            assert_eq!(finding.status, Status::Missing, "{script}");
        }
    }

    #[test]
    fn a_vmm_that_never_stops_talking_is_stopped() {
        let (kind, finding) = kind_and_finding("exec yes");
        assert_eq!(kind, KvmKind::None);
        assert!(finding.found.contains("too long"), "{finding:?}");
    }

    #[test]
    fn without_a_device_the_cpu_decides_the_advice() {
        let (_directory, host) = empty_host();
        put(
            &host,
            "/proc/cpuinfo",
            "processor\t: 0\nflags\t\t: fpu svm sse2\n",
        );
        let advice = run(&host).advice.unwrap();
        assert!(advice.contains("kvm_amd"), "{advice}");
        put(&host, "/proc/cpuinfo", "flags\t\t: fpu sse2\n");
        let advice = run(&host).advice.unwrap();
        assert!(advice.contains("lab"), "{advice}");
    }
}
