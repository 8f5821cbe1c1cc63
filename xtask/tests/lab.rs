//! The lab as its users see it: streams, exit codes, signals, and what is left
//! behind. Each test starts a lab; `cargo xtask test` sees to what that takes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(["lab", "--no-build", "--memory", "1G"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn shell(script: &str) -> Command {
    lab(&["--", "sh", "-c", script])
}

/// What a slow start makes the lab say about itself is none of the command's.
fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| !line.ends_with(" …"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn streams_are_apart_and_the_exit_code_is_the_commands() {
    let output = shell("echo out; echo err >&2; exit 7").output().unwrap();
    assert_eq!(errors(&output), "err");
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn a_machine_with_kvm_sees_these_files_and_forgets_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "from outside").unwrap();
    let script = "test -c /dev/kvm && test -c /dev/net/tun && cat file && echo inside >file \
                  && cat file && cat /proc/sys/kernel/hostname";
    let output = shell(script)
        .current_dir(directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "from outsideinside\nlab\n", "{}", errors(&output));
    let file = fs::read_to_string(directory.path().join("file")).unwrap();
    assert_eq!(file, "from outside");
}

#[test]
fn bytes_pass_both_ways_unchanged() {
    let bytes: Vec<u8> = (0..5_000_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let mut child = lab(&["--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = Sha256::digest(&bytes);
    let writer = thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(Sha256::digest(&output.stdout), sent);
}

#[test]
fn a_reader_that_leaves_is_a_broken_pipe_for_the_command() {
    let mut child = lab(&["--", "yes"]).spawn().unwrap();
    let mut first = [0; 2];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    assert_eq!(&first, b"y\n");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
}

#[test]
fn what_cannot_be_run_has_a_shells_exit_codes() {
    let output = lab(&["--", "no-such-command"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(
        errors(&output).contains("no-such-command"),
        "{}",
        errors(&output)
    );
    let output = lab(&["--", "/etc/passwd"]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
}

#[test]
fn a_program_that_was_built_again_meanwhile_still_starts_its_lab() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("xtask");
    // Not in this process: one that another test forks meanwhile would keep the
    // copy open for writing, and from being executed (ETXTBSY).
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_xtask"))
        .arg(&program)
        .status()
        .unwrap();
    assert!(copied.success());
    let child = Command::new(&program)
        .args(["lab", "--no-build", "--memory", "1G", "--", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    fs::remove_file(&program).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
}

#[test]
fn a_scratch_disk_has_user_xattrs() {
    // setxattr(2) is number 188; Perl is on every Debian.
    let perl = r#"($file, $name, $value) = ("file", "user.a", "b");
                  syscall(188, $file, $name, $value, 1, 0) == 0 or die $!"#;
    let script = format!("cd /scratch && touch file && perl -e '{perl}'");
    let output = lab(&["--scratch", "64M", "--", "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", errors(&output));
}

/// Starts `script` and waits until it prints a line.
fn start(script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = shell(script).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, stdout)
}

#[test]
fn signals_reach_the_command_and_labs_run_side_by_side() {
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let (mut catching, mut stdout) = start(script);
    let (mut other, _other_stdout) = start("echo ready; sleep 1000");
    kill_process(Pid::from_child(&catching), Signal::TERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught\n");
    assert_eq!(catching.wait().unwrap().code(), Some(3));
    // As Ctrl-C does: both the shell and what it waits for.
    kill_process(Pid::from_child(&other), Signal::INT).unwrap();
    assert_eq!(other.wait().unwrap().code(), Some(128 + 2));
}

/// The processes that `pid` has started.
fn children(pid: Pid) -> Vec<i32> {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    fs::read_dir(tasks)
        .unwrap()
        .flatten()
        .flat_map(|task| fs::read_to_string(task.path().join("children")))
        .flat_map(|list| {
            list.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn is_running(pid: i32) -> bool {
    // Without a parent that waits, it stays as a zombie.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn kill_9_leaves_no_process_behind() {
    let (mut child, _stdout) = start("echo ready; sleep 1000");
    let pid = Pid::from_child(&child);
    let processes = children(pid);
    assert!(processes.len() >= 2, "QEMU and virtiofsd: {processes:?}");
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    // A bound against hanging, not a measurement.
    let deadline = Instant::now() + Duration::from_secs(60);
    while processes.iter().any(|pid| is_running(*pid)) {
        assert!(Instant::now() < deadline, "{processes:?} live on");
        thread::sleep(Duration::from_millis(20));
    }
}
