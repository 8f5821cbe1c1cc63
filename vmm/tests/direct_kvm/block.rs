//! virtio-blk, used as it is meant to be.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{Advice, fadvise};
use vmm::spec::{LimitsSpec, RateSpec};

use crate::machine::{memory_file, pattern, probe, stored_file};

const SECTORS: u64 = 300;

#[test]
fn a_disk_reads_as_the_concatenation_of_its_extents() {
    let Some(machine) = probe("block-read seed=9") else {
        return;
    };
    let disk = pattern(9, SECTORS);
    // Three files; the middle one holds three extents, out of order.
    let (a, b, c) = (100 * 512, 7 * 512, 193 * 512);
    let first = memory_file(&disk[..a]);
    let mut middle = vec![0xee; 512];
    middle.extend_from_slice(&disk[a + b..a + b + 512]);
    middle.extend_from_slice(&disk[a..a + b]);
    let middle_file = memory_file(&middle);
    let mut last = b"not a sector, to begin with".to_vec();
    let skipped = last.len() as u64;
    last.extend_from_slice(&disk[a + b + 512..]);
    let last_file = memory_file(&last);
    let outcome = machine
        .disk_of(
            &[
                (&first, 0, a as u64),
                (&middle_file, 1024, b as u64),
                (&middle_file, 512, 512),
                (&last_file, skipped, c as u64 - 512),
            ],
            true,
            None,
        )
        .run();
    outcome.expect_success("300 sectors");
}

#[test]
fn a_disk_of_many_extents_reads_whole() {
    let Some(machine) = probe("block-read seed=3") else {
        return;
    };
    let file = memory_file(&pattern(3, 1000));
    let extents: Vec<_> = (0..1000).map(|sector| (&file, sector * 512, 512)).collect();
    let outcome = machine.disk_of(&extents, true, None).run();
    outcome.expect_success("1000 sectors");
}

#[test]
fn disks_keep_their_order() {
    let Some(machine) = probe("block-read seed=1") else {
        return;
    };
    let (first, second) = (memory_file(&pattern(1, 10)), memory_file(&pattern(2, 20)));
    let outcome = machine.disk(&first, true).disk(&second, false).run();
    outcome.expect_success("20 sectors");
    assert_eq!(outcome.console, "10 sectors\n20 sectors\n");
}

#[test]
fn what_the_guest_writes_is_in_the_files_and_nowhere_else() {
    let Some(machine) = probe("block-write seed=4") else {
        return;
    };
    let (first, second) = (
        memory_file(&[0; 40 * 512]),
        memory_file(&[0xee; 1000 * 512]),
    );
    let middle = 600 * 512;
    let outcome = machine
        .disk_of(
            &[(&second, 512, middle), (&first, 0, 40 * 512)],
            false,
            None,
        )
        .run();
    outcome.expect_success("640 sectors");
    let disk = pattern(4, 640);
    let mut content = vec![0; 1000 * 512];
    second.read_exact_at(&mut content, 0).unwrap();
    let (middle, rest) = (middle as usize, 399 * 512);
    assert_eq!(content[..512], [0xee; 512]);
    assert!(content[512..512 + middle] == disk[..middle]);
    assert!(content[512 + middle..].iter().all(|byte| *byte == 0xee));
    assert_eq!(content.len(), 512 + middle + rest);
    let mut content = vec![0; 40 * 512];
    first.read_exact_at(&mut content, 0).unwrap();
    assert!(content == disk[middle..]);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let Some(machine) = probe("block-read-only seed=2") else {
        return;
    };
    let file = memory_file(&pattern(2, SECTORS));
    machine.disk(&file, true).run().expect_success("refused");
    let mut content = vec![0; SECTORS as usize * 512];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content == pattern(2, SECTORS));
}

#[test]
fn sectors_past_the_end_are_neither_read_nor_written() {
    let Some(machine) = probe("block-out-of-range seed=2") else {
        return;
    };
    // Longer than the disk, and no longer for it.
    let file = memory_file(&pattern(2, SECTORS + 10));
    let length = SECTORS * 512;
    let outcome = machine.disk_of(&[(&file, 0, length)], false, None).run();
    outcome.expect_success("refused");
    assert_eq!(file.metadata().unwrap().len(), (SECTORS + 10) * 512);
}

#[test]
fn a_disk_has_the_identity_it_was_given() {
    let file = memory_file(&pattern(0, 8));
    for (serial, line) in [
        (
            Some("sha256-0123456789abc"),
            "identity sha256-0123456789abc",
        ),
        (Some("short"), "identity short"),
        (None, "identity "),
    ] {
        let Some(machine) = probe("block-identity") else {
            return;
        };
        let outcome = machine.disk_of(&[(&file, 0, 4096)], true, serial).run();
        outcome.expect_success(line);
    }
}

#[test]
fn a_halted_guest_is_woken_when_its_read_is_done() {
    let Some(machine) = probe("block-interrupt seed=6") else {
        return;
    };
    let file = memory_file(&pattern(6, SECTORS));
    machine
        .disk(&file, true)
        .run()
        .expect_success("64 interrupts");
}

#[test]
fn a_request_of_an_unknown_type_is_unsupported() {
    let Some(machine) = probe("block-unsupported seed=6") else {
        return;
    };
    let file = memory_file(&pattern(6, SECTORS));
    machine
        .disk(&file, true)
        .run()
        .expect_success("unsupported");
}

#[test]
fn a_file_that_shrinks_is_an_error_of_the_disk_and_not_of_the_machine() {
    let Some(machine) = probe("block-read seed=6") else {
        return;
    };
    let file = memory_file(&pattern(6, 4096));
    let machine = machine.serial_input().disk(&file, true);
    // Before the guest reads, but after the spec was valid, is a race; a file that
    // cannot be read at all is none.
    file.set_len(4096 * 512).unwrap();
    let running = machine.start();
    file.set_len(0).unwrap();
    let outcome = running.finish();
    // Refused at the start, failed in the guest, or done before: never a crash.
    assert!(matches!(outcome.code, Some(0 | 2 | 3)), "{outcome:#?}");
}

#[test]
fn reads_past_the_end_of_a_file_that_has_shrunk_are_errors() {
    for file in [memory_file, stored_file] {
        let Some(machine) = probe("block-shrunk seed=6") else {
            return;
        };
        let file = file(&pattern(6, 64));
        let mut running = machine.serial_input().disk(&file, false).start();
        assert_eq!(running.console_line(), "ready");
        file.set_len(512).unwrap();
        running.input.take().unwrap().write_all(b"!").unwrap();
        running.finish().expect_success("an error");
    }
}

/// Takes a file's content out of the page cache, where the file system lets it.
fn forget(file: &File) {
    file.sync_all().unwrap();
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn a_disk_that_is_not_in_memory_reads_whole() {
    let Some(machine) = probe("block-read seed=5") else {
        return;
    };
    let (first, second) = (stored_file(&pattern(5, 3000)), stored_file(&[]));
    second
        .write_all_at(&pattern(5, 6000)[3000 * 512..], 4096)
        .unwrap();
    forget(&first);
    forget(&second);
    let half = 3000 * 512;
    let extents = [(&first, 0, half), (&second, 4096, half)];
    let outcome = machine.disk_of(&extents, true, None).run();
    outcome.expect_success("6000 sectors");
}

#[test]
fn what_the_guest_writes_to_a_stored_disk_is_in_its_file() {
    let Some(machine) = probe("block-write seed=4") else {
        return;
    };
    let file = stored_file(&[0; 600 * 512]);
    machine
        .disk(&file, false)
        .run()
        .expect_success("600 sectors");
    let mut content = vec![0; 600 * 512];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content == pattern(4, 600));
}

#[test]
fn discarded_sectors_are_given_back_and_zeroed_ones_are_zero() {
    for file in [memory_file, stored_file] {
        let Some(machine) = probe("block-discard seed=3") else {
            return;
        };
        let file = file(&pattern(3, 128));
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        machine.disk(&file, false).run().expect_success("discarded");
        file.sync_all().unwrap();
        let after = file.metadata().unwrap();
        assert_eq!(after.len(), 128 * 512);
        assert!(after.blocks() < before, "{before} blocks before");
    }
}

#[test]
fn a_limited_disk_reads_whole() {
    let Some(machine) = probe("block-read seed=6") else {
        return;
    };
    let rate = |per_second, burst| Some(RateSpec { per_second, burst });
    let file = memory_file(&pattern(6, SECTORS));
    // Several waits of some milliseconds; a request of 64 sectors is larger than
    // the burst.
    let limits = LimitsSpec {
        bandwidth: rate(1 << 20, 16 << 10),
        operations: rate(500, 2),
    };
    let outcome = machine.disk(&file, true).limits(limits).run();
    outcome.expect_success("300 sectors");
}

#[test]
fn a_read_in_flight_at_a_reset_never_reaches_memory() {
    for file in [memory_file, stored_file] {
        let Some(machine) = probe("reads-in-flight seed=2 sectors=32768") else {
            return;
        };
        let file = file(&pattern(2, 32768));
        forget(&file);
        // Nothing is there before it is asked for.
        fadvise(&file, 0, None, Advice::Random).unwrap();
        let outcome = machine.disk(&file, true).entropy().run();
        outcome.expect_success("200 resets");
    }
}
