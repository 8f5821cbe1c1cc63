//! The gate without a KVM: threads that sleep where a vCPU would run.

use std::io::Read;
use std::sync::atomic::AtomicU64;
use std::thread;

use super::*;

/// Acts as vCPU threads do until `end`: counts, and stays outside when it is wanted.
fn act(gate: &PauseGate, index: usize, count: &AtomicU64, end: &AtomicBool) {
    let immediate_exit = AtomicU8::new(0);
    let seat = gate.seat(index, &immediate_exit, KickedThread::here());
    while !end.load(Ordering::SeqCst) {
        if seat.is_wanted_outside() {
            seat.stay_outside();
            assert_eq!(immediate_exit.load(Ordering::SeqCst), 1);
            seat.park();
        }
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits, as the event loop does, until the gate is in `phase`.
fn wait_for(gate: &PauseGate, phase: Phase) {
    while gate.phase() != phase {
        thread::yield_now();
    }
}

#[test]
fn nobody_counts_while_the_gate_is_closed_and_all_do_after() {
    const VCPUS: usize = 3;
    let gate = PauseGate::new(VCPUS).unwrap();
    assert!(gate.vcpus().eq([VcpuPlace::Starting; VCPUS]));
    let counts: [AtomicU64; VCPUS] = Default::default();
    let end = AtomicBool::new(false);
    let all = || counts.each_ref().map(|count| count.load(Ordering::SeqCst));
    thread::scope(|scope| {
        for (count, index) in counts.iter().zip(0..) {
            let (gate, end) = (&gate, &end);
            scope.spawn(move || act(gate, index, count, end));
        }
        for _ in 0..50 {
            gate.request();
            wait_for(&gate, Phase::Held);
            assert!(gate.changed().read().is_ok());
            assert!(gate.vcpus().eq([VcpuPlace::Parked; VCPUS]));
            let before = all();
            gate.confirm();
            assert_eq!(gate.phase(), Phase::Paused);
            thread::yield_now();
            assert_eq!(all(), before);
            gate.resume();
            while all().iter().zip(before).any(|(now, before)| *now == before) {
                thread::yield_now();
            }
        }
        end.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_pause_right_after_a_resume_finds_everybody_parked() {
    let gate = PauseGate::new(1).unwrap();
    let (count, end) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| act(&gate, 0, &count, &end));
        for _ in 0..200 {
            gate.request();
            wait_for(&gate, Phase::Held);
            gate.resume();
            gate.request();
            wait_for(&gate, Phase::Held);
            gate.confirm();
            gate.resume();
        }
        end.store(true, Ordering::SeqCst);
    });
}

#[test]
fn only_what_is_held_is_confirmed() {
    let gate = PauseGate::new(1).unwrap();
    gate.confirm();
    assert_eq!(gate.phase(), Phase::Running);
    gate.request();
    gate.confirm();
    assert_eq!(gate.phase(), Phase::Pausing, "no vCPU has parked");
    assert!(gate.changed().read().is_err());
    gate.request();
    assert_eq!(gate.phase(), Phase::Pausing);
    gate.resume();
    assert_eq!(gate.phase(), Phase::Running);
}

#[test]
fn a_thread_that_begins_while_the_gate_is_closed_does_not_pass_it() {
    let gate = PauseGate::new(1).unwrap();
    gate.request();
    let immediate_exit = AtomicU8::new(0);
    assert!(
        gate.seat(0, &immediate_exit, KickedThread::here())
            .is_wanted_outside()
    );
}

#[test]
fn a_kick_is_seen_by_the_kicked_thread_alone() {
    let gate = PauseGate::new(2).unwrap();
    let ours = AtomicU8::new(0);
    let _seat = gate.seat(0, &ours, KickedThread::here());
    let (theirs, ready, go_on) = (
        AtomicU8::new(0),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    thread::scope(|scope| {
        scope.spawn(|| {
            let _seat = gate.seat(1, &theirs, KickedThread::here());
            ready.store(true, Ordering::SeqCst);
            while !go_on.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        });
        while !ready.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        gate.slots[1].kick(gate.process);
        while theirs.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert_eq!(ours.load(Ordering::SeqCst), 0);
        go_on.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_kick_interrupts_no_other_system_call() {
    let gate = PauseGate::new(1).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let immediate_exit = AtomicU8::new(0);
    let flag = &immediate_exit;
    let gate = &gate;
    thread::scope(|scope| {
        let read = scope.spawn(move || {
            let _seat = gate.seat(0, flag, KickedThread::here());
            let mut byte = [0];
            reader.read(&mut byte).map(|_| byte)
        });
        while immediate_exit.load(Ordering::SeqCst) == 0 {
            gate.slots[0].kick(gate.process);
            thread::yield_now();
        }
        std::io::Write::write_all(&mut &writer, &[7]).unwrap();
        assert_eq!(read.join().unwrap().unwrap(), [7]);
    });
}
