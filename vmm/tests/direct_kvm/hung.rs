//! Backends that hang, and guests that go on.

use vmm::control::{Command, DeviceState};

use crate::machine::{POWERED_OFF, pattern, probe};
use crate::served_file::ServedFile;

#[test]
fn a_guest_goes_on_while_its_disk_hangs_and_has_it_back_when_it_answers() {
    let Some(machine) = probe("disk-hangs seed=4") else {
        return;
    };
    let content = pattern(4, 64);
    let Some(served) = ServedFile::new(content) else {
        return;
    };
    let machine = machine.disk_of(&[(&served.file, 0, 64 * 512)], false, None);
    let mut running = machine.entropy().control().start();
    for _ in 0..2 {
        served.set_answers(false);
        assert_eq!(running.console_line(), "asked");
        // The vCPU and the event loop are free again, with the request in flight.
        assert_eq!(running.console_line(), "resetting");
        let status = running.controller().status();
        assert_eq!(status.devices[0].state, DeviceState::NeedsReset);
        // Also to be paused.
        running.controller().pause();
        running.controller().command(Command::Resume);
        served.set_answers(true);
        assert_eq!(running.console_line(), "reset");
    }
    let outcome = running.finish();
    outcome.expect_success_after_faults("recovered", &["blk0", "blk0"]);
    assert!(
        outcome
            .fault_reasons()
            .all(|reason| reason.contains("from before the reset"))
    );
}

#[test]
fn a_machine_whose_disk_hangs_can_be_ended() {
    let Some(machine) = probe("disk-hangs seed=4") else {
        return;
    };
    let Some(served) = ServedFile::new(pattern(4, 64)) else {
        return;
    };
    let machine = machine.disk_of(&[(&served.file, 0, 64 * 512)], false, None);
    let mut running = machine.entropy().control().start();
    assert_eq!(running.console_line(), "asked");
    assert_eq!(running.console_line(), "resetting");
    running.controller().command(Command::Quit);
    // The kernel lets a process go when what it waits for has ended.
    served.set_answers(true);
    assert_eq!(running.finish().code, Some(POWERED_OFF));
}
