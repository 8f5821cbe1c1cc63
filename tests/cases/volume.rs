//! `mote run --volume`: directories of the host in a guest.

use std::fs;
use std::path::Path;

use e2e::{image, mote};
use sha2::{Digest, Sha256};

/// Runs `script` in a guest that has `directory` at `/data/of/host`, with `mode`.
fn with_volume(directory: &Path, mode: &str, script: &str) -> e2e::Run {
    let volume = format!("{}:/data/of/host{mode}", directory.display());
    mote(["run", "-v", &volume, &image(), "/bin/sh", "-ec", script])
}

/// The number of processes called virtiofsd that serve `directory`.
fn servers(directory: &Path) -> usize {
    let wanted = format!("source={}", directory.display());
    let wanted_new = format!("--shared-dir={}", directory.display());
    let processes = fs::read_dir("/proc").expect("there is a /proc");
    let lines = processes.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            line.split(|byte| *byte == 0)
                .any(|word| word == wanted.as_bytes() || word == wanted_new.as_bytes())
        })
        .count()
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
    assert_eq!(servers(directory.path()), 0, "its server has outlived it");
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
