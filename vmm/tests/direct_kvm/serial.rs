//! The serial port in both directions.

use std::fs::File;
use std::io::Write;

use crate::machine::probe;

#[test]
fn what_is_typed_comes_back() {
    let Some(machine) = probe("echo") else { return };
    let mut running = machine.serial_input().start();
    assert_eq!(running.console_line(), "ready");
    let mut input = running.input.take().unwrap();
    // More than the port's buffer of 16 or 64 bytes, in one go.
    let text = "All that is typed comes back, byte for byte. ".repeat(20);
    input.write_all(text.as_bytes()).unwrap();
    input.write_all(b"\n").unwrap();
    assert_eq!(running.console_line(), text.trim_end());
    input.write_all(b"and then the end\n\x04").unwrap();
    running.finish().expect_success("and then the end");
}

#[test]
fn a_closed_input_leaves_the_guest_running() {
    let Some(machine) = probe("hello") else {
        return;
    };
    let mut running = machine.serial_input().start();
    drop(running.input.take());
    running.finish().expect_success("hello");
}

#[test]
fn a_console_that_nobody_reads_any_more_leaves_the_guest_running() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    machine.spec.serial.as_mut().unwrap().output = machine.pass(writer);
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
}

#[test]
fn a_full_disk_under_the_console_leaves_the_guest_running() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    let full = File::options().write(true).open("/dev/full").unwrap();
    machine.spec.serial.as_mut().unwrap().output = machine.pass(full);
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
}

#[test]
fn a_machine_without_a_serial_port_runs() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    machine.spec.serial = None;
    let outcome = machine.run();
    assert_eq!((outcome.code, outcome.console.as_str()), (Some(0), ""));
}
