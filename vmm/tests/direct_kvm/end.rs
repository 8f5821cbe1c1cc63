//! Every way to end, and what is said about it.

use std::time::Duration;

use vmm::confinement::Landlock;
use vmm::event::{EventKind, monotonic_ns};

use crate::machine::{CRASHED, POWERED_OFF, RESET, probe, wait_readable};

#[test]
fn power_off_is_success_and_the_events_tell_the_story() {
    let before = monotonic_ns();
    let Some(machine) = probe("hello") else {
        return;
    };
    let outcome = machine.run();
    outcome.expect_success("hello");
    let kinds = outcome.event_kinds();
    let story = [
        &EventKind::ProcessStarted,
        &EventKind::Confined {
            landlock: Landlock::Full,
        },
        &EventKind::GuestEntered,
        &EventKind::PoweredOff,
    ];
    assert_eq!(kinds, story);
    let times: Vec<u64> = outcome.events.iter().map(|e| e.monotonic_ns).collect();
    assert!(before <= times[0] && times.is_sorted(), "{times:?}");
    assert!(times[3] <= monotonic_ns());
}

#[test]
fn a_reset_through_acpi_has_an_exit_code_of_its_own() {
    let Some(machine) = probe("reset") else {
        return;
    };
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(RESET), "{outcome:#?}");
    assert_eq!(outcome.event_kinds().last(), Some(&&EventKind::Reset));
}

#[test]
fn a_reset_through_the_keyboard_controller_is_a_reset_too() {
    let Some(machine) = probe("keyboard-reset") else {
        return;
    };
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(RESET), "{outcome:#?}");
}

#[test]
fn a_triple_fault_is_reported_as_a_crash() {
    let Some(machine) = probe("triple-fault") else {
        return;
    };
    let outcome = machine.run();
    outcome.expect_error(CRASHED, &["the guest crashed: triple fault"]);
    let reason = "triple fault".to_owned();
    let last = EventKind::GuestFault { reason };
    assert_eq!(outcome.event_kinds().last(), Some(&&last));
}

#[test]
fn a_guest_that_fails_is_seen_to_fail() {
    let Some(machine) = probe("fail") else { return };
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(RESET), "{outcome:#?}");
    assert!(outcome.console.contains("arithmetic"), "{outcome:#?}");
}

#[test]
fn every_processor_stops_when_one_powers_off() {
    let Some(machine) = probe("processors") else {
        return;
    };
    // The others halt for good, which no power-off ends but the process's.
    let outcome = machine.vcpus(4).run();
    assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
}

#[test]
fn a_reader_of_events_that_is_gone_or_asleep_does_not_stop_the_guest() {
    for keep_reader in [true, false] {
        let Some(mut machine) = probe("hello") else {
            return;
        };
        let (reader, writer) = std::io::pipe().unwrap();
        // Full, if it is kept: nothing more goes in.
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while rustix::io::write(&writer, &[b'\n'; 4096]).is_ok() {}
        let reader = keep_reader.then_some(reader);
        machine.spec.events = Some(machine.pass(writer));
        let outcome = machine.run();
        assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
        drop(reader);
    }
}

#[test]
fn the_signal_that_pauses_vcpus_does_no_harm_when_others_send_it() {
    use rustix::process::{Signal, kill_process};
    let Some(machine) = probe("idle") else { return };
    let mut running = machine.vcpus(2).start();
    assert_eq!(running.console_line(), "idle");
    for signal in [Signal::USR1, Signal::USR1, Signal::TERM] {
        kill_process(running.child.pid(), signal).unwrap();
        // Of two that wait, the handler of the later one runs first.
        std::thread::sleep(Duration::from_millis(100));
    }
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(128 + 15), "{outcome:#?}");
}

#[test]
fn signals_end_it_and_leave_nothing() {
    use rustix::process::{Signal, kill_process};
    let endings = [
        (Signal::TERM, Some(128 + 15)),
        (Signal::KILL, None),
        (Signal::INT, Some(128 + 2)),
    ];
    for (signal, code) in endings {
        let Some(machine) = probe("idle") else { return };
        let mut running = machine.vcpus(2).entropy().vsock().start();
        assert_eq!(running.console_line(), "idle");
        let pidfd = running.pidfd();
        let children = format!(
            "/proc/{0}/task/{0}/children",
            running.child.pid().as_raw_nonzero()
        );
        assert_eq!(std::fs::read_to_string(children).unwrap_or_default(), "");
        kill_process(running.child.pid(), signal).unwrap();
        wait_readable(&pidfd);
        // The console and the events have ended too, or this would wait.
        let outcome = running.finish();
        assert_eq!(outcome.code, code, "{outcome:#?}");
    }
}
