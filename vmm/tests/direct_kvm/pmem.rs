//! Persistent memory: the host's pages in the guest's memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmm::event::EventKind;

use crate::machine::{CRASHED, Running, pattern, probe, sealed_file, stored_file};

const MIB: u64 = 1 << 20;
const SECTORS_A_MIB: u64 = 2048;

/// Starts a guest that has compared `file`, of `bytes`, with the pattern.
fn looking(file: &File, bytes: u64, seed: u64) -> Option<Running> {
    let machine = probe(&format!("pmem-look seed={seed} bytes={bytes}"))?;
    Some(machine.serial_input().pmem(file, true).start())
}

#[test]
fn a_file_is_read_from_memory_and_zeroes_after_it() {
    // To the middle of a page, and to the end of a huge page.
    for sectors in [1, 1025, 4 * SECTORS_A_MIB] {
        let content = pattern(5, sectors);
        for file in [sealed_file(&content), stored_file(&content)] {
            let Some(mut running) = looking(&file, sectors * 512, 5) else {
                return;
            };
            let size = (sectors * 512).next_multiple_of(2 * MIB);
            let line = format!("{size} bytes at 0x100000000");
            assert_eq!(running.console_line(), line);
            file.write_at(&[0; 8], 0).unwrap();
            running.nudge();
            running.finish().expect_success("0x0");
        }
    }
}

#[test]
fn persistent_memory_begins_above_all_other() {
    let file = sealed_file(&pattern(5, 8));
    for (mib, start) in [(3329, "0x100200000"), (5120, "0x170000000")] {
        let Some(machine) = probe("pmem-look seed=5 bytes=4096") else {
            return;
        };
        let machine = machine.memory_mib(mib).serial_input().pmem(&file, true);
        let mut running = machine.start();
        let line = format!("{} bytes at {start}", 2 * MIB);
        assert_eq!(running.console_line(), line);
        running.child.kill();
        running.finish();
    }
}

/// How much of the file the process has mapped and touched, and its share of that
/// (`Rss` and `Pss` of smaps, proc_pid_smaps(5)), in KiB.
fn resident(running: &Running) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps", running.child.id())).ok()?;
    let mut lines = text
        .lines()
        .skip_while(|line| !(line.contains("memfd:test") && line.contains("r--s")));
    let mut number = |name| {
        let line = lines.find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((number("Rss:")?, number("Pss:")?))
}

#[test]
fn two_guests_share_the_hosts_pages() {
    let content = pattern(7, 8 * SECTORS_A_MIB);
    let file = sealed_file(&content);
    let Some(mut one) = looking(&file, 8 * MIB, 7) else {
        return;
    };
    let mut other = looking(&file, 8 * MIB, 7).unwrap();
    let line = format!("{} bytes at 0x100000000", 8 * MIB);
    assert_eq!(one.console_line(), line);
    assert_eq!(other.console_line(), line);
    // All of it is there, half of it on each account.
    for guest in [&one, &other] {
        let (rss, pss) = resident(guest).unwrap();
        assert_eq!(rss, 8 << 10, "KiB");
        assert!(pss <= rss / 2, "{pss} of {rss} KiB");
    }
    // They are the same pages: both see what becomes of them.
    for (number, text) in [(0x0123_4567_89ab_cdef_u64, "0x123456789abcdef"), (0, "0x0")] {
        file.write_at(&number.to_le_bytes(), 0).unwrap();
        for guest in [&mut one, &mut other] {
            guest.nudge();
            assert_eq!(guest.console_line(), text);
        }
    }
    one.finish().expect_success("0x0");
    other.finish().expect_success("0x0");
}

#[test]
fn what_a_guest_writes_to_read_only_memory_is_lost() {
    let content = pattern(9, 3 * SECTORS_A_MIB);
    for file in [sealed_file(&content), stored_file(&content)] {
        let Some(machine) = probe("pmem-protected seed=9") else {
            return;
        };
        machine.pmem(&file, true).run().expect_success("protected");
        let mut found = vec![0; content.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == content, "the file was written");
    }
}

#[test]
fn what_a_guest_writes_and_flushes_is_in_the_file() {
    let content = vec![0; 4 << 20];
    for file in [sealed_file(&content), stored_file(&content)] {
        let Some(machine) = probe("pmem-fill seed=11") else {
            return;
        };
        let mut running = machine.serial_input().pmem(&file, false).start();
        assert_eq!(running.console_line(), "flushed");
        let mut found = vec![0; content.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(probe_guests::pattern::difference(11, 0, &found), None);
        running.nudge();
        running.finish().expect_success("flushed");
    }
}

#[test]
fn a_file_that_shrinks_ends_the_guests_that_touch_what_is_gone() {
    let file = stored_file(&pattern(3, 4 * SECTORS_A_MIB));
    let start = || {
        let machine = probe("pmem-touch")?.serial_input().pmem(&file, true);
        let mut running = machine.start();
        assert_eq!(running.console_line(), "ready");
        Some(running)
    };
    let Some(one) = start() else { return };
    let other = start().unwrap();
    file.set_len(4096).unwrap();
    // Each lives until it does so.
    for mut guest in [one, other] {
        guest.nudge();
        let outcome = guest.finish();
        assert_eq!(outcome.code, Some(CRASHED), "{outcome:#?}");
        let told = outcome.event_kinds().into_iter().any(
            |kind| matches!(kind, EventKind::GuestFault { reason } if reason.contains("KVM_RUN")),
        );
        assert!(told, "{outcome:#?}");
    }
}

#[test]
fn devices_do_not_reach_persistent_memory() {
    for read_only in [true, false] {
        let file = sealed_file(&pattern(4, 4 * SECTORS_A_MIB));
        let Some(machine) = probe("pmem-lend seed=4") else {
            return;
        };
        let machine = machine.entropy().terminal().pmem(&file, read_only);
        let outcome = machine.run();
        outcome.expect_success_after_faults("lent to nobody", &["console0", "rng"]);
    }
}

#[test]
fn files_follow_each_other() {
    let (one, other) = (pattern(1, 8), pattern(2, 8));
    let Some(machine) = probe("pmem-look seed=1 bytes=4096") else {
        return;
    };
    let (one, other) = (sealed_file(&one), stored_file(&other));
    let machine = machine.pmem(&one, true).pmem(&other, true);
    let mut running = machine.serial_input().start();
    assert!(running.console_line().ends_with("0x100000000"));
    one.write_at(&[0; 8], 0).unwrap();
    running.nudge();
    running.finish().expect_success("0x0");
}
