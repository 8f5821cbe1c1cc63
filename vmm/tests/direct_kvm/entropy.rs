//! virtio-rng.

use std::fs::File;

use crate::machine::probe;

#[test]
fn random_bytes_differ() {
    let Some(machine) = probe("entropy") else {
        return;
    };
    machine.entropy().run().expect_success("random");
}

#[test]
fn a_source_that_is_empty_gives_the_guest_nothing_and_harms_nobody() {
    let Some(mut machine) = probe("hostile-entropy attack=no-length") else {
        return;
    };
    machine.spec.entropy = Some(machine.pass(File::open("/dev/null").unwrap()));
    let outcome = machine.run();
    // The guest notices, which is all that can be asked for.
    assert!(outcome.console.contains("failed"), "{outcome:#?}");
    assert_eq!(outcome.faults(), [""; 0]);
}

#[test]
fn a_source_that_is_all_zeroes_is_seen_by_the_guest() {
    // That the guest's own check can fail.
    let Some(mut machine) = probe("entropy") else {
        return;
    };
    machine.spec.entropy = Some(machine.pass(File::open("/dev/zero").unwrap()));
    let outcome = machine.run();
    assert!(outcome.console.contains("failed"), "{outcome:#?}");
}
