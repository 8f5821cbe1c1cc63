//! The balloon: memory goes back to the host, and comes again.

use vmm::control::{Answer, BalloonStatistics, Command, DeviceState, Outcome};

use crate::machine::{Machine, Running, probe};
use crate::script;

const MIB: u64 = 1 << 20;
/// What the guest writes and gives away.
const GIVEN: u64 = 32 * MIB;

fn machine(scenario: &str) -> Option<Machine> {
    let machine = probe(scenario)?;
    Some(machine.serial_input().balloon().control())
}

/// Memory of the process, as the kernel counts it for real (smaps_rollup).
fn resident_bytes(running: &Running) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", running.child.id());
    let text = std::fs::read_to_string(path)
        .or_else(|_| std::fs::read_to_string(format!("/proc/{}/status", running.child.id())))
        .unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("Rss:") || line.starts_with("VmRSS:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() * 1024
}

/// Lets a guest write 32 MiB and give them away, and looks at the host's memory.
fn gives_back(machine: Machine) -> u64 {
    let mut running = machine.start();
    assert_eq!(running.console_line(), "written");
    let before = resident_bytes(&running);
    running.nudge();
    assert_eq!(running.console_line(), "given");
    let after = resident_bytes(&running);
    let freed = before.saturating_sub(after);
    assert!(freed > GIVEN - MIB, "{before} bytes, then {after}");
    let reported = running
        .controller()
        .status()
        .balloon
        .unwrap()
        .reported_bytes;
    running.nudge();
    running.finish().expect_success("back");
    reported
}

#[test]
fn inflated_pages_leave_the_hosts_memory_and_come_back_when_touched() {
    if let Some(machine) = machine("balloon-inflate") {
        assert_eq!(gives_back(machine), 0);
    }
}

#[test]
fn reported_pages_leave_the_hosts_memory_and_come_back_when_touched() {
    if let Some(machine) = machine("balloon-report") {
        assert_eq!(gives_back(machine), GIVEN);
    }
}

#[test]
fn memory_that_a_backend_has_too_goes_back_as_well() {
    for scenario in ["balloon-inflate", "balloon-report"] {
        let Some(machine) = machine(scenario) else {
            return;
        };
        let (socket, _log) = script::backend(None);
        gives_back(machine.filesystem("home", socket));
    }
}

#[test]
fn a_new_target_interrupts_the_guest_and_changes_the_generation() {
    let Some(machine) = machine("balloon-target") else {
        return;
    };
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    for target_bytes in [16 * MIB, 4096, 64 * MIB] {
        let command = Command::SetBalloon { target_bytes };
        running.controller().command(command);
        let pages = target_bytes / 4096;
        assert_eq!(running.console_line(), format!("{pages} pages"));
        let status = running.controller().status();
        let balloon = status.balloon.unwrap();
        assert_eq!(balloon.target_bytes, target_bytes);
        assert_eq!(balloon.actual_bytes, target_bytes);
        assert_eq!(status.devices[0].name, "balloon");
        assert_eq!(status.devices[0].state, DeviceState::Active);
    }
    // While it is paused the guest hears of nothing, and of it all afterwards.
    running.controller().pause();
    let target_bytes = 8 * MIB;
    let command = Command::SetBalloon { target_bytes };
    running.controller().command(command);
    for _ in 0..20 {
        running.controller().status();
    }
    assert_eq!(running.unread_console(), 0);
    running.controller().command(Command::Resume);
    assert_eq!(running.console_line(), "2048 pages");
    let command = Command::SetBalloon { target_bytes: 0 };
    running.controller().command(command);
    running.finish().expect_success("0 pages");
}

#[test]
fn without_a_driver_there_are_no_statistics_and_bad_targets_are_refused_by_name() {
    let Some(machine) = machine("echo") else {
        return;
    };
    let mut running = machine.start();
    for target_bytes in [1, 4097, 64 * MIB + 4096, u64::MAX] {
        let found = format!("target_bytes is {target_bytes}");
        let command = Command::SetBalloon { target_bytes };
        running.controller().refused(command, &[&found, "4096"]);
    }
    // Nor is there anybody to tell statistics.
    running
        .controller()
        .refused(Command::BalloonStatistics, &["no balloon driver"]);
    running.controller().command(Command::Quit);
    running.finish();
}

#[test]
fn what_the_guest_tells_of_its_memory_comes_through() {
    let Some(machine) = machine("balloon-statistics") else {
        return;
    };
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    for told in 1..10 {
        // Its first buffer, of zero, is no answer to anything.
        let expected = BalloonStatistics {
            free_bytes: Some(told),
            total_bytes: Some(64 * MIB),
            ..BalloonStatistics::default()
        };
        let answer = Answer::BalloonStatistics(expected);
        let outcome = running.controller().ask(Command::BalloonStatistics);
        assert_eq!(outcome, Outcome::Result(answer));
    }
    running.controller().pause();
    running
        .controller()
        .refused(Command::BalloonStatistics, &["paused"]);
    running.controller().command(Command::Resume);
    running.nudge();
    running.finish().expect_success("told");
}

#[test]
fn a_guest_that_tells_nothing_is_given_up_on() {
    let Some(machine) = machine("balloon-silent") else {
        return;
    };
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    let first = running.controller().send(Command::BalloonStatistics);
    // Only one at a time.
    running
        .controller()
        .refused(Command::BalloonStatistics, &["already"]);
    let reply = running.controller().receive();
    assert_eq!(reply.id, Some(first));
    assert!(
        matches!(&reply.outcome, Outcome::Error(reason) if reason.contains("2 seconds")),
        "{reply:?}"
    );
    running.nudge();
    running.finish().expect_success("silent");
}

#[test]
fn without_a_balloon_there_is_nothing_to_ask() {
    let Some(machine) = probe("echo") else {
        return;
    };
    let mut running = machine.serial_input().control().start();
    let command = Command::SetBalloon { target_bytes: 0 };
    running.controller().refused(command, &["no balloon"]);
    running
        .controller()
        .refused(Command::BalloonStatistics, &["no balloon"]);
    assert_eq!(running.controller().status().balloon, None);
    running.controller().command(Command::Quit);
    running.finish();
}
