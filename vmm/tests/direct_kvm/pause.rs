//! Pause and resume: nothing of the guest's goes on, then everything does.

use vmm::control::{Command, RunState, VcpuState};
use vmm::event::EventKind;

use crate::machine::{Machine, POWERED_OFF, Running, probe};

/// A guest with `vcpus` vCPUs, all of which count.
fn counting(vcpus: u32) -> Option<Running> {
    let mut running = probe("count")?.vcpus(vcpus).control().start();
    assert!(running.console_line().starts_with("0 "));
    Some(running)
}

/// What the guest counts to in its next line, itself and in the others.
fn counted(running: &mut Running) -> (u64, u64) {
    let line = running.console_line();
    let (own, others) = line.split_once(' ').unwrap();
    (own.parse().unwrap(), others.parse().unwrap())
}

/// Reads what the guest has printed; returns the last line's counts, if there was a
/// line.
fn drain(running: &mut Running) -> Option<(u64, u64)> {
    let mut last = None;
    // Less than the longest line may be the beginning of one.
    while running.unread_console() > 64 {
        last = Some(counted(running));
    }
    last
}

/// The states of the vCPU threads, as in proc_pid_stat(5).
fn thread_states(running: &Running) -> Vec<char> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
    let stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")));
    stats
        .map(|stat| stat.unwrap())
        .filter(|stat| stat.contains("(vcpu"))
        .map(|stat| stat.rsplit_once(") ").unwrap().1.chars().next().unwrap())
        .collect()
}

#[test]
fn a_guest_stands_still_while_it_is_paused_and_goes_on_after() {
    for vcpus in [1, 4] {
        let Some(mut running) = counting(vcpus) else {
            return;
        };
        running.controller().pause();
        drain(&mut running);
        let unread = running.unread_console();
        // Parked, they have yet to fall asleep.
        let asleep = vec!['S'; vcpus as usize];
        while thread_states(&running) != asleep {
            std::thread::yield_now();
        }
        for _ in 0..100 {
            assert_eq!(thread_states(&running), asleep);
            running.controller().status();
        }
        assert_eq!(running.unread_console(), unread, "it printed");
        running.controller().command(Command::Resume);
        let (own, others) = counted(&mut running);
        let mut later = counted(&mut running);
        for _ in 0..100 {
            later = counted(&mut running);
        }
        assert!(later.0 > own);
        assert!(later.1 > others || vcpus == 1, "{others} {later:?}");
        let status = running.controller().status();
        assert_eq!(status.state, RunState::Running);
        assert_eq!(status.vcpus, vec![VcpuState::Running; vcpus as usize]);
        running.controller().command(Command::Quit);
        let outcome = running.finish();
        assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
        let kinds = outcome.event_kinds();
        let story = [&EventKind::Paused, &EventKind::Resumed, &EventKind::Quit];
        assert_eq!(kinds[kinds.len() - 3..], story);
    }
}

#[test]
fn a_guest_can_be_paused_a_thousand_times() {
    let Some(mut running) = counting(2) else {
        return;
    };
    let mut last = 0;
    for turn in 0..1000 {
        running.controller().command(Command::Pause);
        running.controller().command(Command::Resume);
        if let Some((own, _)) = drain(&mut running) {
            assert!(own > last, "turn {turn}");
            last = own;
        }
    }
    // It has not lost a byte: each line follows the one before.
    for _ in 0..10 {
        let (own, _) = counted(&mut running);
        assert_eq!(counted(&mut running).0, own + 1);
    }
    running.controller().command(Command::Quit);
    assert_eq!(running.finish().code, Some(POWERED_OFF));
}

/// A guest that halts until it reads a byte, and echoes it. Its other vCPUs have
/// not been started.
fn echoing() -> Option<Machine> {
    Some(probe("echo")?.serial_input().control())
}

#[test]
fn halted_vcpus_and_those_that_were_never_started_are_paused_too() {
    let Some(machine) = echoing() else { return };
    let mut running = machine.vcpus(4).start();
    assert_eq!(running.console_line(), "ready");
    for _ in 0..20 {
        running.controller().pause();
        running.controller().command(Command::Resume);
    }
    running.controller().pause();
    // The devices rest: the byte waits for the guest.
    running.nudge();
    for _ in 0..20 {
        running.controller().status();
    }
    assert_eq!(running.unread_console(), 0);
    running.controller().command(Command::Resume);
    assert_eq!(running.console_line(), "");
    let mut input = running.input.take().unwrap();
    std::io::Write::write_all(&mut input, &[4]).unwrap();
    assert_eq!(running.finish().code, Some(POWERED_OFF));
}

#[test]
fn a_vm_that_is_paused_as_soon_as_it_can_be_starts_when_it_is_resumed() {
    for vcpus in [1, 4] {
        for _ in 0..10 {
            let Some(machine) = echoing() else { return };
            let mut running = machine.vcpus(vcpus).start();
            running.controller().pause();
            running.controller().command(Command::Resume);
            assert_eq!(running.console_line(), "ready");
            running.controller().command(Command::Quit);
            assert_eq!(running.finish().code, Some(POWERED_OFF));
        }
    }
}

#[test]
fn pausing_twice_and_resuming_what_runs_change_nothing() {
    let Some(machine) = echoing() else { return };
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    running.controller().command(Command::Resume);
    running.controller().pause();
    running.controller().pause();
    running.controller().command(Command::Resume);
    running.controller().command(Command::Resume);
    running.controller().command(Command::Quit);
    let outcome = running.finish();
    let count = |kind| outcome.events.iter().filter(|e| e.kind == kind).count();
    assert_eq!(count(EventKind::Paused), 1, "{outcome:#?}");
    assert_eq!(count(EventKind::Resumed), 1, "{outcome:#?}");
}

#[test]
fn a_paused_vm_can_be_ended() {
    let Some(mut running) = counting(4) else {
        return;
    };
    running.controller().pause();
    running.controller().command(Command::Quit);
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
    assert_eq!(outcome.event_kinds().last(), Some(&&EventKind::Quit));
}

#[test]
fn a_guest_whose_console_nobody_reads_goes_on_and_can_be_paused() {
    let Some(machine) = probe("chatter kib=128") else {
        return;
    };
    let mut running = machine.serial_input().control().start();
    // It has printed more than the pipe holds, and waits for a byte.
    while running.unread_console() < running.console_capacity() / 2 {
        std::thread::yield_now();
    }
    for _ in 0..20 {
        running.controller().pause();
        running.controller().command(Command::Resume);
    }
    running.nudge();
    let outcome = running.finish();
    assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
}
