//! `mote-vmm`: one process, one microVM.
//!
//! ```text
//! mote-vmm --spec-fd N      run the microVM whose spec is on descriptor N
//! mote-vmm --probe-kvm N    say what the /dev/kvm on descriptor N can run
//! ```
//!
//! Exit codes: 0 the guest powered off or the agent asked for the end, 1 the
//! microVM could not be built, the host failed or this program panicked, 2 wrong arguments or spec, 3
//! the guest reset itself, 4 the guest crashed; 128 and its number for a signal
//! that ended it, of those that can be handled.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use vmm::config::Config;
use vmm::confinement;
use vmm::descriptors::{self, Descriptors};
use vmm::event::{EventKind, EventSink};
use vmm::exit::ExitReason;
use vmm::json_path;
use vmm::machine::Machine;
use vmm::panics;
use vmm::probe;
use vmm::seccomp;
use vmm::signals;
use vmm::spec::VmSpec;

const HOST_FAILURE: u8 = 1;
const WRONG_USE: u8 = 2;
const GUEST_RESET: u8 = 3;
const GUEST_FAULT: u8 = 4;

/// A spec is a few kilobytes; thousands of extents make it a few hundred.
const MAX_SPEC_BYTES: u64 = 4 << 20;

const USAGE: &str = "\
usage: mote-vmm --spec-fd N | --probe-kvm N

mote-vmm is started by mote with every descriptor it needs; it opens nothing.
  --spec-fd N     run the microVM whose spec (JSON) is on descriptor N
  --probe-kvm N   try what the /dev/kvm open on descriptor N can run, print JSON";

fn main() -> ExitCode {
    let started_ns = vmm::event::monotonic_ns();
    seccomp::share_one_heap();
    let mut arguments = std::env::args_os().skip(1);
    let (Some(mode), Some(number), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return usage();
    };
    let Some(number) = number.to_str().and_then(|number| number.parse().ok()) else {
        return usage();
    };
    match mode.to_str() {
        Some("--spec-fd") => run(number, started_ns),
        Some("--probe-kvm") => probe_kvm(number),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    // Whoever would read it may be gone.
    let _ = writeln!(std::io::stderr(), "{USAGE}");
    ExitCode::from(WRONG_USE)
}

fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    complain(error);
    ExitCode::from(code)
}

fn complain(error: &anyhow::Error) {
    // Whoever reads it may be gone.
    let _ = writeln!(std::io::stderr(), "mote-vmm: {error:#}");
}

fn run(spec_fd: i32, started_ns: u64) -> ExitCode {
    let mut config = match read_spec(spec_fd) {
        Ok(config) => config,
        Err(error) => return fail(WRONG_USE, &error),
    };
    let events = Arc::new(EventSink::new(config.events.take()));
    events.send_at(EventKind::ProcessStarted, started_ns);
    signals::handle();
    panics::install_hook(Arc::clone(&events));
    let landlock = match confinement::enter() {
        Ok(landlock) => landlock,
        Err(error) => return fail(HOST_FAILURE, &error.into()),
    };
    let machine = match Machine::build(config, events) {
        Ok(machine) => machine,
        Err(error) => return fail(HOST_FAILURE, &error.into()),
    };
    let code = match machine.run(landlock) {
        Ok(ExitReason::PoweredOff | ExitReason::Quit) => 0,
        Ok(ExitReason::Reset) => GUEST_RESET,
        Ok(ExitReason::GuestFault(reason)) => {
            complain(&anyhow::anyhow!("the guest crashed: {reason}"));
            GUEST_FAULT
        }
        Ok(ExitReason::HostFailure(reason)) => {
            complain(&anyhow::Error::msg(reason));
            HOST_FAILURE
        }
        Err(error) => {
            complain(&error.into());
            HOST_FAILURE
        }
    };
    end(code)
}

/// Ends the process at once. Whatever the vCPU threads still hold goes with it;
/// unwinding it piece by piece would take longer, and the filter allows no more.
fn end(code: u8) -> ! {
    // SAFETY: nothing that is left to do at an orderly end is of use to anyone.
    unsafe { libc::_exit(code.into()) }
}

fn read_spec(number: i32) -> anyhow::Result<Config> {
    let fd = Descriptors::default().take(number, "--spec-fd")?;
    let mut text = Vec::new();
    File::from(fd)
        .take(MAX_SPEC_BYTES + 1)
        .read_to_end(&mut text)
        .context("cannot read the VM spec")?;
    if text.len() as u64 > MAX_SPEC_BYTES {
        bail!("the VM spec is longer than {MAX_SPEC_BYTES} bytes");
    }
    let spec = parse_spec(&text).context("the VM spec is not valid")?;
    Config::from_spec(spec).context("the VM spec is not valid")
}

fn parse_spec(text: &[u8]) -> anyhow::Result<VmSpec> {
    serde_json::from_slice(text).map_err(|error| {
        let field = json_path::of_position(text, error.line(), error.column());
        match field.is_empty() {
            true => error.into(),
            false => anyhow::Error::new(error).context(field),
        }
    })
}

fn probe_kvm(number: i32) -> ExitCode {
    let kvm = match descriptors::only(number, "--probe-kvm") {
        Ok(fd) => fd,
        Err(error) => return fail(WRONG_USE, &error.into()),
    };
    match serde_json::to_string(&probe::run(kvm)) {
        Ok(line) => match writeln!(std::io::stdout(), "{line}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(
                HOST_FAILURE,
                &anyhow::Error::new(error).context("cannot print"),
            ),
        },
        Err(error) => fail(HOST_FAILURE, &error.into()),
    }
}
