//! The system a workload finds around itself.

use e2e::{mote, shell};

#[test]
fn the_file_systems_a_container_expects_are_there() {
    let script = "for m in / /dev /dev/pts /dev/shm /proc /sys /sys/fs/cgroup; do \
                  echo $m $(awk -v m=$m '$2==m {t=$3} END {print t}' /proc/mounts); done";
    let expected = [
        "/ overlay",
        "/dev ",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/proc proc",
        "/sys sysfs",
        "/sys/fs/cgroup cgroup2",
    ];
    let text = shell(script).expect(0).text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line:?} is not {expected:?}");
    }
}

#[test]
fn the_doctor_finds_what_guests_need_where_they_run() {
    let run = mote(["doctor", "--format", "json"]).expect(0);
    let report: serde_json::Value = serde_json::from_str(&run.text()).expect("JSON");
    assert_eq!(report["can_run_linux"], true, "{report}");
    assert_eq!(report["checks"][0]["kvm"], "hardware", "{report}");
}

#[test]
fn devices_work() {
    let script = "echo x >/dev/null; head -c 4 /dev/zero | od -An -tx1; \
                  [ $(head -c 16 /dev/urandom | wc -c) = 16 ] && echo random; \
                  echo redirected >/dev/stdout; echo x | cat /dev/stdin; \
                  python3 -c 'import os; m, s = os.openpty(); print(os.ttyname(s))'";
    let text = shell(script).expect(0).text();
    assert_eq!(text, " 00 00 00 00\nrandom\nredirected\nx\n/dev/pts/0");
}

#[test]
fn a_user_without_rights_may_write_to_its_own_output() {
    let script = "echo one >/dev/stdout; echo two >/dev/stderr";
    let run = mote([
        "run",
        "-u",
        "www-data",
        &e2e::image(),
        "/bin/sh",
        "-c",
        script,
    ])
    .expect(0);
    assert_eq!((run.text().as_str(), run.errors().as_str()), ("one", "two"));
}

#[test]
fn the_root_is_writable_and_forgets() {
    let script = "[ ! -e /etc/mark ] && echo x >/etc/mark && rm /etc/issue && cat /etc/mark";
    assert_eq!(shell(script).expect(0).text(), "x");
    assert_eq!(shell(script).expect(0).text(), "x");
}

#[test]
fn orphans_are_reaped() {
    let script = "for i in 1 2 3 4 5; do (sh -c 'exit 0' & sleep 0.2) & done; wait; sleep 1; \
                  grep -l 'State:.Z' /proc/[0-9]*/status | wc -l";
    assert_eq!(shell(script).expect(0).text(), "0");
}

#[test]
fn what_is_left_when_the_command_ends_does_not_keep_the_machine() {
    let run = shell("sleep 1000 & echo started").expect(0);
    assert_eq!(run.text(), "started");
}

#[test]
fn the_loopback_interface_and_localhost_work() {
    let script = "redis-server --port 7777 --daemonize yes >/dev/null; \
                  for i in 1 2 3 4 5 6 7 8 9; do \
                  redis-cli -h localhost -p 7777 ping 2>/dev/null && break; sleep 0.5; done";
    assert_eq!(shell(script).expect(0).text(), "PONG");
}

#[test]
fn cgroup_controllers_may_be_used_by_the_workload() {
    let script = "cat /sys/fs/cgroup/cgroup.controllers; cat /proc/self/cgroup";
    let text = shell(script).expect(0).text();
    for controller in ["cpu", "memory", "pids", "io"] {
        assert!(text.contains(controller), "{text}");
    }
}

#[test]
fn a_fork_bomb_of_output_arrives_in_full() {
    let script = "i=0; while [ $i -lt 20 ]; do seq 1 2000 & i=$((i+1)); done; wait";
    let text = shell(script).expect(0).text();
    assert_eq!(text.lines().count(), 40_000);
}
