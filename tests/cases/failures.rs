//! What goes wrong, and what is left behind: nothing.

use std::time::{Duration, Instant};

use e2e::{finish, image, mote, mote_in_background, shell};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_command_that_is_not_there_is_127() {
    let run = mote(["run", &image(), "no-such-command"]).expect(127);
    assert!(run.errors().contains("no-such-command"), "{}", run.errors());
    mote(["run", &image(), "/no/such/command"]).expect(127);
}

#[test]
fn a_command_that_cannot_be_executed_is_126() {
    let run = mote(["run", &image(), "/etc/passwd"]).expect(126);
    assert!(run.errors().contains("/etc/passwd"), "{}", run.errors());
    mote(["run", &image(), "/etc"]).expect(126);
}

#[test]
fn a_user_that_is_not_there_is_125_with_the_name() {
    let run = mote(["run", "-u", "nobody-here", &image(), "true"]).expect(125);
    assert!(run.errors().contains("nobody-here"), "{}", run.errors());
}

#[test]
fn a_kernel_that_is_no_kernel_is_125() {
    let run = mote(["run", "--kernel", "/etc/passwd", &image(), "true"]).expect(125);
    assert!(run.errors().contains("kernel"), "{}", run.errors());
}

#[test]
fn a_kernel_that_panics_is_reported_with_its_last_words() {
    // To run out of memory is a panic if one asks for it.
    let script = "echo 1 >/proc/sys/vm/panic_on_oom && tail /dev/zero";
    let run = mote(["run", "-m", "128M", &image(), "sh", "-c", script]).expect(125);
    assert!(run.errors().contains("Kernel panic"), "{}", run.errors());
}

fn children_of(pid: Pid) -> Vec<String> {
    let path = format!("/proc/{0}/task/{0}/children", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    // A bound against hanging, not a measurement.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in 60 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn kill_9_of_mote_leaves_no_vm_behind() {
    let child = mote_in_background(["run", "--name", "killed", &image(), "sleep", "1000"]);
    let pid = Pid::from_child(&child);
    wait_until("a VM process", || !children_of(pid).is_empty());
    let vm = children_of(pid).remove(0);
    kill_process(pid, Signal::KILL).expect("mote is there");
    finish(child);
    wait_until("the end of the VM process", || {
        std::fs::read_to_string(format!("/proc/{vm}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    });
    mote(["run", "--name", "killed", &image(), "true"]).expect(0);
}

#[test]
fn a_name_in_use_is_refused_and_free_again_afterwards() {
    let child = mote_in_background(["run", "--name", "taken", &image(), "sleep", "1000"]);
    let pid = Pid::from_child(&child);
    wait_until("a VM process", || !children_of(pid).is_empty());
    let run = mote(["run", "--name", "taken", &image(), "true"]).expect(125);
    assert!(run.errors().contains("taken"), "{}", run.errors());
    kill_process(pid, Signal::TERM).expect("mote is there");
    finish(child).expect(128 + 15);
    mote(["run", "--name", "taken", &image(), "true"]).expect(0);
}

#[test]
fn a_guest_that_resets_itself_is_reported() {
    // reboot(2), LINUX_REBOOT_CMD_RESTART: what a panic of the kernel ends in.
    let script = "perl -e 'syscall(169, 0xfee1dead, 672274793, 0x1234567, 0)'; sleep 100";
    let run = shell(script).expect(125);
    assert!(run.errors().contains("reset"), "{}", run.errors());
}

#[test]
fn several_machines_run_side_by_side() {
    let children: Vec<_> = (0..3)
        .map(|n| {
            let script = format!("sleep 1; echo {n}");
            mote_in_background(["run", &image(), "/bin/sh", "-c", &script])
        })
        .collect();
    for (child, n) in children.into_iter().zip(0..) {
        assert_eq!(finish(child).expect(0).text(), n.to_string());
    }
}
