//! What a VMM counts, read without asking it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::process::{Signal, kill_process};
use vmm::metrics;
use vmm::metrics::reader::{ReadError, Reader, Snapshot};
use vmm::spec::{LimitsSpec, RateSpec};

use crate::machine::{Machine, counts, memory_file, pattern, probe, wait_readable};

const WRITES: u64 = 100;
const RINGS: u64 = 30;
const READS: u64 = 7;

fn counted() -> Option<Machine> {
    let file = memory_file(&pattern(1, 8));
    let machine = probe(&format!(
        "counted writes={WRITES} rings={RINGS} reads={READS}"
    ))?;
    Some(machine.serial_input().disk(&file, false).entropy())
}

/// The guest has done since `before` what it was told to.
#[track_caller]
fn expect_all(before: &Snapshot, after: &Snapshot) {
    let (old, vcpu) = (&before.vcpus[0], &after.vcpus[0]);
    // Those of the line "done" as well.
    assert_eq!(vcpu.port_writes - old.port_writes, WRITES + 5, "{after:#?}");
    // Those of nobody's doorbell, and the one that resets the device.
    assert_eq!(vcpu.mmio_writes - old.mmio_writes, RINGS + 1, "{after:#?}");
    assert!(vcpu.mmio_reads > old.mmio_reads, "{after:#?}");
    assert!(vcpu.port_reads > old.port_reads, "{after:#?}");
    let served = vcpu.port_writes + vcpu.port_reads + vcpu.mmio_writes + vcpu.mmio_reads;
    // The last one may not be done yet.
    assert!(served - vcpu.serving.count() <= 1, "{after:#?}");

    let (old, disk) = (&before.devices[0], &after.devices[0]);
    assert_eq!((disk.name.as_str(), disk.kind), ("blk0", 2));
    assert_eq!((old.doorbells, old.chains, old.resets), (0, 0, 1));
    assert_eq!(disk.doorbells, RINGS + READS + 1, "{disk:#?}");
    assert_eq!(disk.chains, READS + 1, "{disk:#?}");
    assert_eq!(disk.bytes_to_guest, 512 * READS, "{disk:#?}");
    assert_eq!(disk.bytes_from_guest, 512, "{disk:#?}");
    assert_eq!(disk.service.count(), READS + 1, "{disk:#?}");
    assert!((1..=READS + 1).contains(&disk.interrupts), "{disk:#?}");
    assert!(disk.queue_runs >= 1, "{disk:#?}");
    assert_eq!((disk.resets, disk.faults), (2, 0), "{disk:#?}");
    let entropy = &after.devices[1];
    assert_eq!((entropy.name.as_str(), entropy.kind), ("rng", 4));
    assert_eq!(*entropy, before.devices[1]);
}

#[test]
fn what_a_guest_does_is_counted_exactly_and_can_be_read_when_its_vmm_is_dead() {
    let Some(machine) = counted() else { return };
    let mut running = machine.start();
    assert_eq!(running.console_line(), "ready");
    let before = counts(&running.metrics);
    running.nudge();
    assert_eq!(running.console_line(), "done");
    let page = running.metrics.try_clone().unwrap();
    expect_all(&before, &counts(&page));

    let pidfd = running.pidfd();
    kill_process(running.child.pid(), Signal::KILL).unwrap();
    wait_readable(&pidfd);
    assert_eq!(running.finish().code, None);
    expect_all(&before, &counts(&page));
}

#[test]
fn each_vcpu_is_counted_for_itself() {
    let Some(machine) = probe("processors") else {
        return;
    };
    let running = machine.vcpus(4).start();
    let page = running.metrics.try_clone().unwrap();
    running.finish().expect_success("4 processors work");
    let counts = counts(&page);
    assert!(counts.latencies);
    assert_eq!(counts.vcpus.len(), 4);
    assert!(counts.vcpus[0].port_writes > 0, "{counts:#?}");
    for vcpu in &counts.vcpus[1..] {
        assert_eq!(vcpu.port_writes, 0, "{counts:#?}");
    }
}

#[test]
fn faults_and_waits_for_limits_are_counted() {
    let Some(machine) = probe("hostile-block attack=header-alone seed=8") else {
        return;
    };
    let disk = memory_file(&pattern(8, 64));
    let running = machine.disk(&disk, true).entropy().start();
    let page = running.metrics.try_clone().unwrap();
    let outcome = running.finish();
    outcome.expect_success_after_faults("survived", &["blk0"]);
    assert_eq!(counts(&page).devices[0].faults, 1);

    let Some(machine) = probe("block-read seed=6") else {
        return;
    };
    let rate = RateSpec {
        per_second: 500,
        burst: 2,
    };
    let limits = LimitsSpec {
        bandwidth: None,
        operations: Some(rate),
    };
    let file = memory_file(&pattern(6, 300));
    let running = machine.disk(&file, true).limits(limits).start();
    let page = running.metrics.try_clone().unwrap();
    running.finish().expect_success("300 sectors");
    let disk = &counts(&page).devices[0];
    assert!(disk.limit_waits > 0, "{disk:#?}");
    assert_eq!(disk.bytes_to_guest, 300 * 512, "{disk:#?}");
    assert_eq!(disk.chains, disk.service.count(), "{disk:#?}");
}

#[test]
fn a_triple_fault_is_an_exit_that_ends_it() {
    let Some(machine) = probe("triple-fault") else {
        return;
    };
    let running = machine.start();
    let page = running.metrics.try_clone().unwrap();
    running.finish();
    assert_eq!(counts(&page).vcpus[0].ended, 1);
}

#[test]
fn without_latencies_there_are_counts_and_without_a_page_there_is_nothing() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    machine.spec.metrics.as_mut().unwrap().latencies = false;
    let running = machine.start();
    let page = running.metrics.try_clone().unwrap();
    running.finish().expect_success("hello");
    let vcpu = &counts(&page).vcpus[0];
    assert!(vcpu.port_writes >= 6, "{vcpu:#?}");
    assert_eq!(vcpu.serving.count(), 0, "{vcpu:#?}");

    let Some(mut machine) = probe("hello") else {
        return;
    };
    machine.spec.metrics = None;
    let running = machine.start();
    let page = running.metrics.try_clone().unwrap();
    running.finish().expect_success("hello");
    let reader = Reader::new(&page).unwrap();
    assert!(matches!(reader.snapshot(), Err(ReadError::NotReady)));
    assert!(is_untouched(&page));
}

fn is_untouched(page: &File) -> bool {
    let mut content = vec![1; metrics::FILE_BYTES as usize];
    page.read_exact_at(&mut content, 0).unwrap();
    content.iter().all(|byte| *byte == 0)
}
