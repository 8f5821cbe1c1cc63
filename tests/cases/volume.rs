//! `mote run --volume`: directories of the host in a guest.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use e2e::{finish, image, mote, run_until_ready, variable};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

/// Runs `script` in a guest that has `directory` at `/data/of/host`, with `mode`.
fn with_volume(directory: &Path, mode: &str, script: &str) -> e2e::Run {
    let volume = format!("{}:/data/of/host{mode}", directory.display());
    mote(["run", "-v", &volume, &image(), "/bin/sh", "-ec", script])
}

/// The processes called virtiofsd that serve `directory`.
fn servers(directory: &Path) -> Vec<Pid> {
    let wanted = format!("source={}", directory.display());
    let wanted_new = format!("--shared-dir={}", directory.display());
    let serves = |process: &Path| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.any(|word| word == wanted.as_bytes() || word == wanted_new.as_bytes())
    };
    let processes = fs::read_dir("/proc").expect("there is a /proc");
    let paths = processes.filter_map(|entry| Some(entry.ok()?.path()));
    let pid = |path: PathBuf| Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?);
    paths.filter(|path| serves(path)).filter_map(pid).collect()
}

#[test]
fn a_directory_is_read_and_written_on_both_sides() {
    let directory = tempfile::tempdir().expect("a directory");
    let content: Vec<u8> = (0..3_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(directory.path().join("large"), &content).expect("a file");
    fs::create_dir(directory.path().join("below")).expect("a directory");
    let script = "
        grep -q ' /data/of/host virtiofs rw' /proc/mounts
        sha256sum < /data/of/host/large
        mkdir /data/of/host/below/new
        cp /data/of/host/large /data/of/host/below/new/copy
        mv /data/of/host/large /data/of/host/moved
        ln -s moved /data/of/host/link
        echo guest > /data/of/host/below/word
        sync
        ls /data/of/host
    ";
    let run = with_volume(directory.path(), "", script).expect(0);
    let sum = format!("{:x}  -", Sha256::digest(&content));
    assert_eq!(run.text(), format!("{sum}\nbelow\nlink\nmoved"));
    let read = |name: &str| fs::read(directory.path().join(name)).expect("a file of the guest's");
    assert!(read("below/new/copy") == content, "the copy differs");
    assert!(read("link") == content, "the link leads elsewhere");
    assert_eq!(read("below/word"), b"guest\n");
    let servers = servers(directory.path());
    assert!(servers.is_empty(), "its server has outlived it");
}

#[test]
fn a_read_only_directory_is_so_for_root_of_the_guest() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("word"), "host").expect("a file");
    let script = "
        cat /data/of/host/word
        ! echo guest > /data/of/host/word
        mount -o remount,rw /data/of/host
        ! echo guest > /data/of/host/word
        ! rm /data/of/host/word
        ! touch /data/of/host/new
    ";
    let run = with_volume(directory.path(), ":ro", script).expect(0);
    assert_eq!(run.text(), "host");
    assert_eq!(fs::read(directory.path().join("word")).unwrap(), b"host");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn several_directories_are_apart() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(one.path().join("word"), "one").unwrap();
    fs::write(other.path().join("word"), "other").unwrap();
    let one = format!("{}:/one", one.path().display());
    let other = format!("{}:/one/other", other.path().display());
    // The second is mounted in the first.
    let script = "cat /one/word; echo; cat /one/other/word";
    let flags = ["run", "-v", &one, "-v", &other];
    let command = ["/bin/sh", "-ec", script];
    let image = image();
    let run = mote(flags.into_iter().chain([image.as_str()]).chain(command));
    assert_eq!(run.expect(0).text(), "one\nother");
}

#[test]
fn what_cannot_be_served_is_an_error_of_mote() {
    let image = image();
    for (volume, says) in [
        ("data:/data", "named volumes"),
        ("/no/such/directory:/data", "/no/such/directory"),
        ("/etc/passwd:/data", "must be a directory"),
        ("/srv:/data:z", "ro or rw"),
    ] {
        let run = mote(["run", "-v", volume, &image, "true"]).expect(125);
        assert!(run.errors().contains(says), "{}", run.errors());
    }
    let arguments = ["run", "-v", "/srv:/data", "--virtiofsd", "/none", &image];
    let run = mote(arguments).expect(125);
    assert!(
        run.errors().contains("--virtiofsd /none"),
        "{}",
        run.errors()
    );
    // A program that is none ends with its connection unserved.
    let arguments = [
        "run",
        "-v",
        "/srv:/data",
        "--virtiofsd",
        "/bin/true",
        &image,
    ];
    let run = mote(arguments).expect(125);
    assert!(
        run.errors().contains("filesystems[0].socket"),
        "{}",
        run.errors()
    );
}

#[test]
fn a_distributions_kernel_has_volumes_too() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("word"), "host").expect("a file");
    let volume = format!("{}:/data", directory.path().display());
    let kernel = variable("MOTE_E2E_KERNEL");
    let script = "cat /data/word; echo guest >/data/word";
    let image = image();
    let arguments = ["run", "--kernel", &kernel, "-v", &volume, &image];
    let command = ["/bin/sh", "-ec", script];
    let run = mote(arguments.into_iter().chain(command)).expect(0);
    assert_eq!(run.text(), "host");
    assert_eq!(fs::read(directory.path().join("word")).unwrap(), b"guest\n");
}

#[test]
fn a_guest_goes_on_without_the_files_of_a_server_that_was_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("word"), "host").expect("a file");
    let volume = format!("{}:/data", directory.path().display());
    // Who asks for a file then may wait for ever; the workload and its end do not.
    let script = "echo ready; read line; cat /data/word & sleep 1; echo alive";
    let image = image();
    let arguments = ["-v", &volume, &image, "/bin/sh", "-c", script];
    let mut run = run_until_ready(arguments);
    let servers = servers(directory.path());
    assert!(!servers.is_empty(), "nobody serves the directory");
    for server in &servers {
        let cgroup = format!("/proc/{}/cgroup", server.as_raw_nonzero());
        let cgroup = fs::read_to_string(cgroup).expect("the server is there");
        let mut hierarchies = cgroup.lines();
        let path = hierarchies.find_map(|line| line.strip_prefix("0::"));
        let path = path.expect("cgroups of version 2");
        assert!(path.ends_with("-volume0"), "{path}");
        let threads = fs::read_to_string(format!("/sys/fs/cgroup{path}/pids.max"));
        assert_ne!(threads.expect("a limit"), "max\n");
    }
    for server in servers {
        kill_process(server, Signal::KILL).expect("the server is there");
    }
    run.stdin.as_mut().unwrap().write_all(b"go on\n").unwrap();
    assert_eq!(finish(run).expect(0).text(), "alive");
}
