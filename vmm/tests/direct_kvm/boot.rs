//! From kernel file to first instruction.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmm::event::EventKind;
use vmm::spec::BootBlobSpec;

use crate::machine::{HOST_FAILURE, WRONG_USE, hash_tree, memory_file, pattern, probe};
use crate::served_file::ServedFile;

#[test]
fn a_guest_boots_and_powers_off() {
    let Some(machine) = probe("hello") else {
        return;
    };
    machine.run().expect_success("hello");
}

#[test]
fn every_thread_is_behind_its_filter_when_the_kernel_is_read() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    let Some(kernel) = ServedFile::new(probe_guests::PROBE.to_vec()) else {
        return;
    };
    let (hash, outboard) = hash_tree(&memory_file(probe_guests::PROBE));
    machine.spec.boot.kernel = BootBlobSpec {
        hash,
        file: machine.pass(kernel.file.try_clone().unwrap()),
        outboard: machine.pass(outboard),
    };
    let running = machine.vcpus(32).start();
    kernel.wait_until_asked();
    let threads = format!("/proc/{}/task", running.child.id());
    let mut confined = 0;
    for thread in std::fs::read_dir(threads).unwrap() {
        let status = thread.unwrap().path().join("status");
        let status = std::fs::read_to_string(status).unwrap();
        // SECCOMP_MODE_FILTER (proc_pid_status(5)).
        assert!(status.contains("Seccomp:\t2"), "{status}");
        confined += 1;
    }
    assert_eq!(confined, 1 + 32);
    kernel.set_answers(true);
    running.finish().expect_success("hello");
}

#[test]
fn the_longest_command_line_arrives_whole() {
    let filler = "x".repeat(2047 - "command-line filler=".len());
    let line = format!("command-line filler={filler}");
    let Some(machine) = probe(&line) else { return };
    machine.run().expect_success(&line);
}

#[test]
fn the_initrd_arrives_whole() {
    // Not a whole number of pages.
    let content = &pattern(5, 3000)[..1_000_001];
    let Some(machine) = probe("initrd seed=5") else {
        return;
    };
    let outcome = machine.initrd(memory_file(content)).run();
    outcome.expect_success("initrd of 1000001 bytes");
}

#[test]
fn the_tables_name_every_processor_and_device() {
    let Some(machine) = probe("tables") else {
        return;
    };
    let disk = memory_file(&pattern(0, 8));
    let outcome = machine
        .vcpus(3)
        .entropy()
        .vsock()
        .disk(&disk, true)
        .disk(&disk, true)
        .run();
    outcome.expect_success("4 virtio devices");
    assert_eq!(
        outcome.console,
        "memory 0x0 to 0x9fc00\n\
         memory 0x100000 to 0x4000000\n\
         3 processors\n\
         4 virtio devices\n"
    );
}

#[test]
fn as_many_devices_work_as_there_are_interrupts() {
    let Some(mut machine) = probe("tables") else {
        return;
    };
    let disk = memory_file(&pattern(0, 8));
    for _ in 0..19 {
        machine = machine.disk(&disk, true);
    }
    machine.run().expect_success("19 virtio devices");
}

#[test]
fn thirty_two_processors_start_and_share_memory() {
    for count in [1, 2, 32] {
        let Some(machine) = probe("processors") else {
            return;
        };
        let outcome = machine.vcpus(count).run();
        outcome.expect_success(&format!("{count} processors work"));
    }
}

#[test]
fn the_smallest_guest_boots_in_the_smallest_memory() {
    let Some(machine) = probe("off") else { return };
    let outcome = machine
        .kernel(probe_guests::FIRST_INSTRUCTION)
        .memory_mib(2)
        .run();
    outcome.expect_success("!");
}

#[test]
fn a_kernel_that_is_no_kernel_is_refused() {
    for content in [&b"#!/bin/sh\n"[..], b"", b"\x7fELF", &[0; 4096]] {
        let Some(machine) = probe("") else { return };
        let outcome = machine.kernel(content).run();
        outcome.expect_error(HOST_FAILURE, &["boot.kernel"]);
    }
}

#[test]
fn a_truncated_elf_kernel_is_refused() {
    let whole = probe_guests::PROBE;
    for length in [16, 63, 64, 100, 4096, 5000, 100_000] {
        let Some(machine) = probe("hello") else {
            return;
        };
        let outcome = machine.kernel(&whole[..length]).run();
        outcome.expect_error(HOST_FAILURE, &["cannot load boot.kernel"]);
    }
}

#[test]
fn a_truncated_bzimage_is_refused() {
    // A setup header with everything a loader asks for, and nothing behind it.
    let mut header = vec![0; 0x1000];
    header[0x1f1] = 4;
    header[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    header[0x202..0x206].copy_from_slice(b"HdrS");
    header[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    header[0x211] = 1;
    header[0x1f4..0x1f8].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    for length in [0x206, 0x240, 0x280, 0x1000] {
        let Some(machine) = probe("hello") else {
            return;
        };
        let outcome = machine.kernel(&header[..length]).run();
        outcome.expect_error(HOST_FAILURE, &["boot.kernel"]);
    }
}

#[test]
fn a_kernel_larger_than_memory_is_refused() {
    let Some(machine) = probe("hello") else {
        return;
    };
    let mut kernel = probe_guests::PROBE.to_vec();
    // Program header 0: load at 1 GiB.
    kernel[64 + 24..64 + 32].copy_from_slice(&(1_u64 << 30).to_le_bytes());
    let outcome = machine.kernel(&kernel).run();
    outcome.expect_error(
        HOST_FAILURE,
        &["cannot load boot.kernel into 67108864 bytes"],
    );
}

#[test]
fn an_initrd_larger_than_memory_is_refused() {
    let Some(machine) = probe("initrd seed=5") else {
        return;
    };
    let sparse = memory_file(b"");
    sparse.set_len(1 << 30).unwrap();
    let outcome = machine.initrd(sparse).run();
    outcome.expect_error(
        HOST_FAILURE,
        &["boot.initrd, of 1073741824 bytes", "more memory"],
    );
}

#[test]
fn an_initrd_does_not_overwrite_the_kernel() {
    let Some(machine) = probe("initrd seed=5") else {
        return;
    };
    // The probe guest with its heap ends between 18 and 20 MiB.
    let large = memory_file(b"");
    large.set_len(48 << 20).unwrap();
    let outcome = machine.initrd(large).run();
    outcome.expect_error(HOST_FAILURE, &["boot.initrd, of 50331648 bytes"]);
}

#[test]
fn what_is_not_kvm_is_refused() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    machine.spec.kvm = machine.pass(File::open("/dev/null").unwrap());
    let outcome = machine.run();
    outcome.expect_error(WRONG_USE, &["kvm must be /dev/kvm"]);
}

#[test]
fn the_kernel_file_is_only_read() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    let kernel = memory_file(probe_guests::PROBE);
    machine.spec.boot.kernel = machine.pass_blob(kernel.try_clone().unwrap());
    machine.run().expect_success("hello");
    let mut content = vec![0; probe_guests::PROBE.len()];
    kernel.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, probe_guests::PROBE);
}

/// Boots with a file in which one bit is another than when it was named.
#[track_caller]
fn refused_with_a_changed_bit(field: &str, content: &[u8], at: u64) {
    let Some(mut machine) = probe("initrd seed=5") else {
        return;
    };
    let file = memory_file(content);
    let changed = file.try_clone().unwrap();
    let blob = machine.pass_blob(file);
    let hash = blob.hash;
    changed
        .write_all_at(&[content[at as usize] ^ 0x10], at)
        .unwrap();
    match field {
        "boot.kernel" => machine.spec.boot.kernel = blob,
        _ => machine.spec.boot.initrd = Some(blob),
    }
    let outcome = machine.run();
    outcome.expect_error(
        HOST_FAILURE,
        &[
            &format!("cannot load {field}"),
            &format!("blob {hash} is corrupt"),
        ],
    );
    let told = outcome.events.iter().any(|event| {
        matches!(&event.kind, EventKind::CorruptBoot { field: told, hash: which, .. }
            if told == field && *which == hash)
    });
    assert!(told, "{outcome:#?}");
    assert_eq!(outcome.console, "");
}

#[test]
fn a_kernel_that_is_not_what_the_spec_names_is_not_booted() {
    let kernel = probe_guests::PROBE;
    // In its header, at its entry, in the last group that is loaded.
    for at in [5, 4096, kernel.len() as u64 / 2] {
        refused_with_a_changed_bit("boot.kernel", kernel, at);
    }
}

#[test]
fn an_initrd_that_is_not_what_the_spec_names_is_not_booted() {
    let initrd = &pattern(5, 3000)[..1_000_001];
    for at in [0, 500_000, 1_000_000] {
        refused_with_a_changed_bit("boot.initrd", initrd, at);
    }
}
