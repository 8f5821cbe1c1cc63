//! Memory of any size.

use crate::machine::probe;

#[test]
fn memory_ends_where_it_was_told_to() {
    for (mib, last) in [(48, "0x2fffff8"), (64, "0x3fffff8"), (1024, "0x3ffffff8")] {
        let Some(machine) = probe("memory") else {
            return;
        };
        let outcome = machine.memory_mib(mib).run();
        outcome.expect_success(&format!("{last} is the last"));
    }
}

#[test]
fn memory_goes_on_above_the_hole() {
    // 3.25 GiB below the hole, the rest from 4 GiB on.
    for (mib, last) in [
        (3328, "0xcffffff8"),
        (3329, "0x1000ffff8"),
        (5120, "0x16ffffff8"),
    ] {
        let Some(machine) = probe("memory") else {
            return;
        };
        let outcome = machine.memory_mib(mib).run();
        outcome.expect_success(&format!("{last} is the last"));
    }
}

#[test]
fn where_there_is_no_device_all_ones_are_read() {
    let Some(machine) = probe("nothing-there") else {
        return;
    };
    machine.run().expect_success("nothing there");
}
