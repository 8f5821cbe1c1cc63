//! The console: text in both directions, and terminals that change their size.

use std::io::{BufRead, Read, Write};

use vmm::control::Command;

use crate::machine::probe;

#[test]
fn what_is_typed_at_a_console_comes_back() {
    let Some(machine) = probe("console-echo") else {
        return;
    };
    let mut running = machine.terminal().start();
    let terminal = running.terminal();
    let mut line = String::new();
    terminal.screen.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // More than the guest's buffers of a page, in one go.
    let text = "All that is typed comes back, byte for byte. ".repeat(100);
    terminal.keyboard.write_all(text.as_bytes()).unwrap();
    terminal.keyboard.write_all(b"\nend\n\x04").unwrap();
    let mut seen = String::new();
    terminal.screen.read_line(&mut seen).unwrap();
    terminal.screen.read_line(&mut seen).unwrap();
    assert_eq!(seen, format!("{text}\nend\n"));
    running.finish().expect_success("echoed");
}

#[test]
fn a_console_that_nobody_reads_does_not_stop_the_guest() {
    let Some(machine) = probe("console-print seed=3 kib=1024") else {
        return;
    };
    let mut running = machine.terminal().start();
    // It says so elsewhere, while nobody reads.
    assert_eq!(running.console_line(), "printed");
    let mut seen = Vec::new();
    running.terminal().screen.read_to_end(&mut seen).unwrap();
    // A pipe's worth at least, from the beginning.
    assert!(seen.len() >= 64 << 10, "{} bytes", seen.len());
    assert_eq!(probe_guests::pattern::difference(3, 0, &seen), None);
    running.finish().expect_success("printed");
}

#[test]
fn a_console_whose_terminal_is_gone_does_not_stop_the_guest() {
    let Some(machine) = probe("console-print seed=3 kib=256") else {
        return;
    };
    let mut running = machine.terminal().start();
    running.drop_terminal();
    running.finish().expect_success("printed");
}

#[test]
fn a_new_size_of_the_terminal_interrupts_the_guest() {
    let Some(machine) = probe("console-size") else {
        return;
    };
    let mut running = machine.terminal().control().start();
    assert_eq!(running.console_line(), "80 by 25");
    for (columns, rows) in [(200, 50), (u16::MAX, 2), (2, u16::MAX)] {
        running.controller().command(resize(columns, rows));
        assert_eq!(running.console_line(), format!("{columns} by {rows}"));
    }
    running.controller().command(resize(1, 1));
    running.finish().expect_success("1 by 1");
}

#[test]
fn sizes_of_no_terminal_are_refused_by_name() {
    let Some(machine) = probe("console-size") else {
        return;
    };
    let mut running = machine.terminal().control().start();
    assert_eq!(running.console_line(), "80 by 25");
    let controller = running.controller();
    controller.refused(resize(0, 25), &["columns is 0", "1 or more"]);
    controller.refused(resize(80, 0), &["rows is 0", "1 or more"]);
    let elsewhere = Command::Resize {
        device: "console1".to_owned(),
        columns: 80,
        rows: 25,
    };
    controller.refused(elsewhere, &["no console", "console1"]);
    controller.command(resize(1, 1));
    running.finish().expect_success("1 by 1");
}

fn resize(columns: u16, rows: u16) -> Command {
    Command::Resize {
        device: "console0".to_owned(),
        columns,
        rows,
    }
}
