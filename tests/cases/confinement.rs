//! What confines the VMM of a real guest, read back from the kernel.

use std::process::Command;

use e2e::{finish, image, mote, run_until_ready};
use serde_json::Value;

#[test]
fn the_vmm_of_a_running_guest_has_every_wall_around_it() {
    let script = "echo ready; cat";
    let image = image();
    let arguments = ["--cpus", "2", "--name", "walled", &image];
    let mut run = run_until_ready(arguments.into_iter().chain(["/bin/sh", "-c", script]));

    let listed = mote(["ps", "--format", "json"]).expect(0).text();
    // Other tests have theirs running.
    let mut machines = listed.lines().map(|line| {
        let machine: Value = serde_json::from_str(line).expect("JSON");
        machine["name"].clone()
    });
    assert!(machines.any(|name| name == "walled"), "{listed}");
    let told = mote(["inspect", "walled", "--format", "json"]).expect(0);
    let told: Value = serde_json::from_str(&told.text()).expect("JSON");
    let confinement = &told["confinement"];

    let pid = told["machine"]["vmm_pid"].as_u64().unwrap();
    // An id of its own, in the range that nobody else has.
    assert_eq!(confinement["uid"], 0x7000_0000 + pid, "{told}");
    assert_eq!(confinement["gid"], confinement["uid"], "{told}");
    assert_eq!(confinement["groups"], Value::Array(Vec::new()), "{told}");
    for (set, mask) in confinement["capabilities"].as_object().unwrap() {
        assert_eq!(mask, "0000000000000000", "{set}");
    }
    assert_eq!(confinement["no_new_privs"], true, "{told}");
    assert_eq!(confinement["dumpable"], false, "{told}");
    let namespaces = confinement["own_namespaces"].as_object().unwrap();
    assert_eq!(namespaces.len(), 7);
    assert!(namespaces.values().all(|own| own == true), "{told}");
    let root = &confinement["root"];
    assert_eq!((&root["mounts"], &root["entries"]), (&1.into(), &0.into()));
    assert_eq!(root["read_only"], true, "{told}");
    // Debian's 6.1 kernel has Landlock for files.
    assert_eq!(told["machine"]["landlock"], "partial", "{told}");

    let threads = confinement["threads"].as_array().unwrap();
    let vcpus = threads
        .iter()
        .filter(|thread| thread["name"].as_str().unwrap().starts_with("vcpu"));
    assert_eq!(vcpus.count(), 2, "{told}");
    // KVM's own threads and io_uring's make no system calls.
    let of_ours = |thread: &&Value| {
        let name = thread["name"].as_str().unwrap();
        !name.starts_with("kvm") && !name.starts_with("iou-")
    };
    for thread in threads.iter().filter(of_ours) {
        assert_eq!(thread["filters"], 1, "{told}");
    }

    let limits = &confinement["cgroup"]["limits"];
    assert_eq!(limits["cpu.max"], "300000 100000", "{told}");
    let memory: u64 = limits["memory.max"].as_str().unwrap().parse().unwrap();
    assert!((512 << 20..1 << 30).contains(&memory), "{told}");
    let pids: u64 = limits["pids.max"].as_str().unwrap().parse().unwrap();
    assert!(pids < 20, "{told}");
    assert_eq!(confinement["limits"]["Max core file size"], "0", "{told}");

    drop(run.stdin.take());
    finish(run).expect(0);
    assert_eq!(mote(["ps", "--format", "json"]).expect(0).text(), "");
    let gone = mote(["inspect", "walled"]).expect(125);
    assert!(gone.errors().contains("mote ps"), "{}", gone.errors());
}

/// A disk of the host, as long as it lives.
struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &std::path::Path) -> Self {
        std::fs::write(file, vec![0; 1 << 20]).expect("room for a file");
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .expect("losetup is there");
        assert!(output.status.success(), "{output:?}");
        let path = String::from_utf8(output.stdout).expect("a path");
        Self(path.trim_end().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn limits_on_a_disk_of_the_host_are_those_of_the_cgroup() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let device = LoopDevice::new(&directory.path().join("disk"));
    let image = image();
    let limit = format!("{}:1m", device.0);
    let limits = ["--device-write-bps", &limit, "--device-read-iops", &limit];
    let command = [&image, "/bin/sh", "-c", "echo ready; cat"];
    let arguments = ["--name", "limited"].into_iter();
    let mut run = run_until_ready(arguments.chain(limits).chain(command));
    let told = mote(["inspect", "limited", "--format", "json"]).expect(0);
    let told: Value = serde_json::from_str(&told.text()).expect("JSON");
    let io_max = told["confinement"]["cgroup"]["limits"]["io.max"].to_string();
    let expected = "rbps=max wbps=1048576 riops=1048576 wiops=max";
    assert!(io_max.contains(expected), "{told}");
    drop(run.stdin.take());
    finish(run).expect(0);

    let no_disk = mote(["run", "--device-read-bps", "/dev/null:1m", &image, "true"]).expect(125);
    assert!(
        no_disk.errors().contains("/dev/null is no disk"),
        "{}",
        no_disk.errors()
    );
}

#[test]
fn a_machine_that_outgrows_its_cgroup_is_told_as_out_of_memory() {
    let script = "echo ready; cat >/dev/null; exec tail /dev/zero";
    let image = image();
    let arguments = ["-m", "512m", "--name", "outgrown", &image];
    let mut run = run_until_ready(arguments.into_iter().chain(["/bin/sh", "-c", script]));
    let told = mote(["inspect", "outgrown", "--format", "json"]).expect(0);
    let told: Value = serde_json::from_str(&told.text()).expect("JSON");
    let cgroup = told["confinement"]["cgroup"]["path"].as_str().unwrap();
    // As if somebody else took what it may have.
    let limit = format!("/sys/fs/cgroup{cgroup}/memory.max");
    std::fs::write(limit, "192M").expect("the limit can be set");
    drop(run.stdin.take());
    let errors = finish(run).expect(125).errors();
    assert!(errors.contains("killed as out of memory"), "{errors}");
    assert!(errors.contains("memory.max"), "{errors}");
}
