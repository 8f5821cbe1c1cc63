//! `mote run`: streams, exit codes, signals and flags.

use std::io::{BufRead, BufReader};

use e2e::{finish, image, mote, mote_in_background, mote_with_input, shell, variable};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

#[test]
fn streams_stay_apart_and_the_exit_code_comes_back() {
    let run = shell("echo out; echo err >&2; exit 7").expect(7);
    assert_eq!(run.text(), "out");
    assert_eq!(run.errors(), "err");
}

#[test]
fn every_exit_code_comes_back_exactly() {
    for code in [0, 1, 125, 255] {
        shell(&format!("exit {code}")).expect(code);
    }
}

#[test]
fn a_signal_in_the_guest_is_128_and_its_number() {
    shell("kill -TERM $$").expect(128 + 15);
    shell("kill -KILL $$").expect(128 + 9);
}

/// Bytes of every value, the same each time, without a pattern of powers of two.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[test]
fn standard_input_arrives_byte_for_byte() {
    let input = noise(8 << 20);
    let sum = format!("{:x}  -", Sha256::digest(&input));
    let arguments = ["run", "-i", &image(), "sha256sum"];
    assert_eq!(mote_with_input(arguments, input).expect(0).text(), sum);
}

#[test]
fn standard_output_leaves_byte_for_byte() {
    let input = noise(8 << 20);
    let run = mote_with_input(["run", "-i", &image(), "cat"], input.clone()).expect(0);
    assert!(run.stdout == input, "{} bytes came back", run.stdout.len());
}

#[test]
fn without_i_standard_input_is_empty() {
    let run = mote_with_input(["run", &image(), "cat"], b"not for the guest".to_vec());
    assert_eq!(run.expect(0).text(), "");
}

#[test]
fn output_after_a_closed_input_still_arrives() {
    let script = "cat >/dev/null; echo done";
    let arguments = ["run", "-i", &image(), "/bin/sh", "-c", script];
    let run = mote_with_input(arguments, Vec::new()).expect(0);
    assert_eq!(run.text(), "done");
}

#[test]
fn a_command_that_does_not_read_its_input_ends_all_the_same() {
    let arguments = ["run", "-i", &image(), "/bin/echo", "done"];
    let run = mote_with_input(arguments, noise(4 << 20)).expect(0);
    assert_eq!(run.text(), "done");
}

#[test]
fn signals_sent_to_mote_reach_the_workload() {
    let script = "trap 'echo got TERM; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = mote_in_background(["run", &image(), "/bin/sh", "-c", script]);
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the guest prints");
    assert_eq!(line, "ready\n");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("mote is there");
    line.clear();
    output.read_line(&mut line).expect("the guest prints");
    assert_eq!(line, "got TERM\n");
    finish(child).expect(3);
}

#[test]
fn cpus_and_memory_are_what_was_asked_for() {
    let script = "nproc; sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
    let run = mote([
        "run",
        "--cpus",
        "2",
        "-m",
        "512M",
        &image(),
        "/bin/sh",
        "-c",
        script,
    ])
    .expect(0);
    let text = run.text();
    let (cpus, kilobytes) = text.split_once('\n').expect("two lines");
    assert_eq!(cpus, "2");
    let megabytes = kilobytes.parse::<u64>().expect("a number") / 1024;
    assert!((440..=512).contains(&megabytes), "{megabytes} MiB");
}

#[test]
fn environment_comes_from_image_flags_and_file_in_dockers_order() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(
        &file,
        "# a comment\nFROM_FILE=1\nBOTH=file\n\nSPACES=a b  c\n",
    )
    .expect("the file can be written");
    let path = file.path().to_str().expect("a path");
    let script = "echo $FROM_FILE,$BOTH,$SPACES,$FLAG,$HOME,$PATH";
    let run = mote([
        "run",
        "--env-file",
        path,
        "-e",
        "BOTH=flag",
        "-e",
        "FLAG=x=y",
        &image(),
        "/bin/sh",
        "-c",
        script,
    ])
    .expect(0);
    let text = run.text();
    assert!(text.starts_with("1,flag,a b c,x=y,/root,/"), "{text}");
}

#[test]
fn working_directory_and_hostname_are_what_was_asked_for() {
    let run = mote([
        "run",
        "-w",
        "/made/for/this",
        "--hostname",
        "somewhere",
        &image(),
        "/bin/sh",
        "-c",
        "pwd; hostname; cat /etc/hostname; getent hosts somewhere >/dev/null && echo known",
    ])
    .expect(0);
    assert_eq!(run.text(), "/made/for/this\nsomewhere\nsomewhere\nknown");
}

#[test]
fn users_are_looked_up_in_the_image() {
    let ids = |user: &str| {
        let script = "echo $(id -u):$(id -g):$(id -G):$HOME";
        mote(["run", "-u", user, &image(), "/bin/sh", "-c", script])
            .expect(0)
            .text()
    };
    assert_eq!(ids("www-data"), "33:33:33:/var/www");
    assert_eq!(ids("33:0"), "33:0:0:/var/www");
    assert_eq!(ids("12345:23456"), "12345:23456:23456:/");
}

#[test]
fn an_entrypoint_replaces_the_images() {
    let run = mote(["run", "--entrypoint", "/bin/echo", &image(), "one", "two"]).expect(0);
    assert_eq!(run.text(), "one two");
}

#[test]
fn an_unmodified_debian_kernel_boots() {
    let kernel = variable("MOTE_E2E_KERNEL");
    let run = mote(["run", "--kernel", &kernel, &image(), "uname", "-r"]).expect(0);
    assert!(run.text().ends_with("-cloud-amd64"), "{}", run.text());
}

#[test]
fn timing_lists_every_step_in_order() {
    let run = mote(["run", "--timing", &image(), "/bin/true"]).expect(0);
    let text = run.errors().to_lowercase();
    let mut rest = text.as_str();
    for step in [
        "image",
        "vm process",
        "instruction",
        "init",
        "workload",
        "exit",
    ] {
        let at = rest
            .find(step)
            .unwrap_or_else(|| panic!("no {step:?} (or out of order) in:\n{text}"));
        rest = &rest[at..];
    }
}
