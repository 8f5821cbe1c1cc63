//! File systems: with Debian's virtiofsd, and with backends that mean no good.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use vmm::control::DeviceState;
use vmm::devices::virtio::fs::message::Request;

use crate::machine::{HOST_FAILURE, Machine, probe};
use crate::script::{self, Act, reply};

/// Its places in Debian 13 and 12.
const VIRTIOFSD: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// A directory served by the real thing.
struct Served {
    directory: PathBuf,
    server: Child,
}

impl Served {
    /// Serves a new directory called after `name`; `None`, and a line that says why,
    /// where there is no virtiofsd.
    fn new(name: &str) -> Option<(Self, UnixStream)> {
        let Some(program) = VIRTIOFSD
            .iter()
            .find(|path| fs::exists(path).is_ok_and(|is| is))
        else {
            let line = format!("skipped: {name}: there is no virtiofsd\n");
            let _ = io::stderr().write_all(line.as_bytes());
            return None;
        };
        let name = format!("mote-vmm-fs-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let path = directory.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let server = Command::new(program)
            .args(["--fd=0", "-o", "sandbox=chroot", "-o"])
            .arg(format!("source={}", directory.display()))
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some((Self { directory, server }, socket))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended with its connection.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_guest_reads_a_file_that_virtiofsd_serves_before_and_after_a_reset() {
    let Some(machine) = probe("fs-look") else {
        return;
    };
    let Some((served, socket)) = Served::new("look") else {
        return;
    };
    fs::write(served.directory.join("greeting"), "good morning").unwrap();
    let outcome = machine.filesystem("home", socket).run();
    outcome.expect_success("home: good morning");
    let lines = outcome.console.matches("home: good morning").count();
    assert_eq!(lines, 2, "{outcome:#?}");
}

#[test]
fn memory_on_both_sides_of_the_hole_is_served() {
    // The program of the guest and its queues are low; the table has two regions.
    let Some(machine) = probe("fs-look") else {
        return;
    };
    let Some((served, socket)) = Served::new("large") else {
        return;
    };
    fs::write(served.directory.join("greeting"), "good evening").unwrap();
    let machine = machine
        .memory_mib(5120)
        .filesystem("x".repeat(36).as_str(), socket);
    let line = format!("{}: good evening", "x".repeat(36));
    machine.run().expect_success(&line);
}

#[test]
fn when_virtiofsd_dies_the_guest_goes_on() {
    let Some(machine) = machine("fs-survive") else {
        return;
    };
    let Some((mut served, socket)) = Served::new("dies") else {
        return;
    };
    let mut running = machine.filesystem("home", socket).start();
    assert_eq!(running.console_line(), "ready");
    served.server.kill().unwrap();
    assert_eq!(running.console_line(), "fault");
    running.nudge();
    running
        .finish()
        .expect_success_after_faults("survived", &["fs0", "fs0"]);
}

fn machine(scenario: &str) -> Option<Machine> {
    Some(probe(scenario)?.serial_input().entropy().control())
}

fn backend(request: Request, act: Act) -> OwnedFd {
    let (socket, log) = script::backend(Some((request, 0, act)));
    // Nobody looks at what it gets.
    drop(log);
    socket
}

#[test]
fn a_backend_that_fails_before_the_guest_starts_is_an_error_by_name() {
    let harm: [(Request, Act, &str); 5] = [
        (Request::GetFeatures, Act::Close, "closed the connection"),
        (Request::GetFeatures, Act::Answer(0), "does not offer"),
        (
            Request::GetProtocolFeatures,
            Act::Send(vec![0xff; 64]),
            "is no answer",
        ),
        (
            Request::SetMemTable,
            Act::Answer(1),
            "refused VHOST_USER_SET_MEM_TABLE",
        ),
        (
            Request::SetMemTable,
            Act::Hang,
            "has not answered VHOST_USER_SET_MEM_TABLE",
        ),
    ];
    for (request, act, says) in harm {
        let Some(machine) = machine("hello") else {
            return;
        };
        let machine = machine.filesystem("home", script::backend(None).0);
        let outcome = machine.filesystem("other", backend(request, act)).run();
        outcome.expect_error(HOST_FAILURE, &["filesystems[1].socket", says]);
        assert_eq!(outcome.console, "");
    }
}

#[test]
fn a_backend_that_fails_at_the_start_of_the_queues_leaves_the_guest_alone() {
    let late = reply(Request::SetVringEnable as u32, 0).repeat(2);
    let harm: [(Request, Act, &str); 5] = [
        (Request::SetVringNum, Act::Close, "closed the connection"),
        (Request::SetFeatures, Act::Break, "closed the connection"),
        (
            Request::SetVringKick,
            Act::Answer(1),
            "refused VHOST_USER_SET_VRING_KICK",
        ),
        (Request::SetVringEnable, Act::Send(late), "is no answer"),
        (Request::SetVringAddr, Act::Hang, "has not answered"),
    ];
    for (request, act, says) in harm {
        let Some(machine) = machine("fs-survive") else {
            return;
        };
        let mut running = machine.filesystem("home", backend(request, act)).start();
        assert_eq!(running.console_line(), "ready");
        assert_eq!(running.console_line(), "fault");
        let status = running.controller().status();
        let device = status.devices.iter().find(|device| device.name == "fs0");
        assert_eq!(device.unwrap().state, DeviceState::NeedsReset);
        running.nudge();
        let outcome = running.finish();
        outcome.expect_success_after_faults("survived", &["fs0", "fs0"]);
        assert!(
            outcome.fault_reasons().all(|reason| reason.contains(says)),
            "{outcome:#?}"
        );
    }
}

#[test]
fn a_backend_that_does_not_give_queues_back_holds_a_reset_up_and_no_more() {
    for act in [Act::Hang, Act::Close, Act::Send(vec![1; 100])] {
        let Some(machine) = machine("fs-restart") else {
            return;
        };
        let machine = machine.filesystem("home", backend(Request::GetVringBase, act));
        let mut running = machine.start();
        assert_eq!(running.console_line(), "ready");
        running.nudge();
        running
            .finish()
            .expect_success_after_faults("survived", &["fs0"]);
    }
}
