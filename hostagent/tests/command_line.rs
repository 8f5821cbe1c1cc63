//! `mote`'s flags, messages and exit codes, as far as they need no guest.

mod support;

use hostagent::running::RunningMachine;
use hostagent::store::Store;
use serde_json::Value;
use support::{Layout, Mote, Stored, config, layer};

/// A `mote` whose kernel and VMM are there, though they do nothing.
fn mote() -> Mote {
    let mote = Mote::new();
    mote.install_idle();
    mote
}

fn image() -> Layout {
    Layout::with_image(&[layer(&[("file", b"x")])], Stored::Gzip, "t")
}

#[test]
fn help_is_a_success_and_teaches_by_examples() {
    let mote = Mote::new();
    for command in [
        &["--help"][..],
        &["run", "--help"],
        &["load", "--help"],
        &["images", "--help"],
        &["doctor", "--help"],
        &["stats", "--help"],
    ] {
        let run = mote.run(command).expect(0);
        assert!(run.stdout.contains("Examples:"), "{run:?}");
        assert!(run.stderr.is_empty(), "{run:?}");
    }
    mote.run(&["--version"]).expect(0);
}

#[test]
fn wrong_use_is_125_and_says_what_is_wrong() {
    let mote = mote();
    for (arguments, word) in [
        (
            &["run", "--no-such-flag", "image"][..],
            "unexpected argument '--no-such-flag'",
        ),
        (&["run", "-z", "image"], "unexpected argument '-z'"),
        (&["run"], "IMAGE"),
        (&["run", "-e"], "--env"),
        (&["load", "--no-such-flag"], "--no-such-flag"),
        (&["images", "-z", "extra"], "-z"),
        (&["no-such-command"], "no-such-command"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["images", "--format", "xml"], "xml"),
        (&["load", "-i", "file", "oci:dir"], "cannot be used with"),
        (&["run", "Upper/Case"], "upper-case"),
        (&["run", "oci:"], "oci:DIRECTORY[:TAG]"),
    ] {
        mote.run(arguments).expect_failure(&[word]);
    }
}

#[test]
fn limits_that_no_machine_can_have_are_refused() {
    let mote = mote();
    let reference = image().reference("t");
    for (flags, words) in [
        (&["-m", "0"][..], &["0 bytes", "at least"][..]),
        (&["-m", "1m"], &["1 MiB", "at least"]),
        (&["-m", "100000g"], &["this host has"]),
        (&["-m", "99999999999999999999g"], &["more than any machine"]),
        (&["-m", "lots"], &["not a size"]),
        (&["--cpus", "0"], &["1 to 32"]),
        (&["--cpus", "1000"], &["1 to 32"]),
        (&["--cpus", "1.5"], &["whole"]),
        (&["--cpus", "-1"], &["whole"]),
        (&["--cpus", "many"], &["not a number"]),
    ] {
        let mut arguments = vec!["run"];
        arguments.extend(flags);
        arguments.push(&reference);
        mote.run(&arguments).expect_failure(words);
    }
}

#[test]
fn an_image_that_was_never_loaded_is_named_with_what_to_do() {
    let run = mote().run(&["run", "--pull", "never", "nothing:here"]);
    run.expect_failure(&["nothing:here", "mote images", "mote pull", "mote load"]);
}

#[test]
fn several_images_and_no_name_are_a_question_back() {
    let mut layout = image();
    let second = layout.image(&config(&[]), &[], Stored::Plain);
    layout.tag(second, "other");
    let run = mote().run(&["run", &layout.reference("")]);
    run.expect_failure(&["several images", "\"t\"", "\"other\""]);
}

#[test]
fn a_workload_that_cannot_be_put_together_is_refused() {
    let mote = mote();
    let layout = image();
    let reference = layout.reference("t");
    for (flags, word) in [
        (&["-w", "relative"][..], "absolute"),
        (&["--entrypoint", ""], "no command"),
        (&["-e", "=value"], "no name"),
        (&["--env-file", "/no/such/file"], "/no/such/file"),
        (&["--hostname", "not a name"], "host name"),
        (&["--name", "-"], "name"),
    ] {
        let mut arguments = vec!["run"];
        arguments.extend(flags);
        arguments.push(&reference);
        mote.run(&arguments).expect_failure(&[word]);
    }
    let bad = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bad.path(), "GOOD=1\n=bad\n").unwrap();
    let path = bad.path().to_str().unwrap();
    let run = mote.run(&["run", "--env-file", path, &reference]);
    run.expect_failure(&["line 2", path]);
}

#[test]
fn a_name_that_runs_is_refused_until_its_holder_is_gone() {
    let mote = mote();
    let layout = image();
    let arguments = ["run", "--name", "web", &layout.reference("t")];
    let store = Store::open(mote.root.path()).unwrap();
    let holder = store.take_run_name("web").unwrap().unwrap();
    mote.run(&arguments).expect_failure(&["web", "in use"]);
    drop(holder);
    // It gets further now: to the VMM that gives up, or to a missing /dev/kvm.
    let run = mote.run(&arguments).expect(125);
    assert!(!run.stderr.contains("in use"), "{run:?}");
    mote.assert_consistent();
}

#[test]
fn what_follows_the_image_belongs_to_the_command() {
    let mote = mote();
    // If these flags were mote's own, the first would be refused as unknown.
    let layout = image();
    let reference = layout.reference("t");
    for command in [
        &["--no-such-flag"][..],
        &["-m", "0"],
        &["--", "-x"],
        &["--help"],
    ] {
        let mut arguments = vec!["run", "--rm", &reference];
        arguments.extend(command);
        let run = mote.run(&arguments).expect(125);
        assert!(!run.stderr.contains("unexpected argument"), "{run:?}");
        assert!(!run.stderr.contains("at least"), "{run:?}");
        assert!(run.stdout.is_empty(), "{run:?}");
    }
}

#[test]
fn flags_may_be_repeated_switched_off_and_empty_as_with_docker() {
    let layout = image();
    let reference = layout.reference("t");
    let flags = "run --rm=true -i=false -m 0 -m 128m --cpus 2.0 --name= --hostname= --user= -w=";
    let mut arguments: Vec<&str> = flags.split(' ').collect();
    arguments.push(&reference);
    let run = mote().run(&arguments);
    // There is no VMM to run it, but nothing was wrong with the flags.
    for wrong in ["--", "invalid", "unknown", "memory", "unexpected"] {
        assert!(!run.stderr.contains(wrong), "{run:?}");
    }
}

#[test]
fn missing_parts_of_mote_are_named_with_where_they_were_looked_for() {
    let layout = image();
    let reference = layout.reference("t");
    for part in ["vmlinux", "initrd", "mote-vmm"] {
        let mote = mote();
        std::fs::remove_file(mote.assets().join(part)).unwrap();
        let directory = mote.assets().to_str().unwrap().to_owned();
        mote.run(&["run", &reference])
            .expect_failure(&[part, &directory]);
    }
}

#[test]
fn a_kernel_that_is_no_kernel_or_has_no_modules_is_refused() {
    let mote = mote();
    let layout = image();
    let reference = layout.reference("t");
    let kernel = mote.assets().join("kernel");
    let path = kernel.to_str().unwrap();
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
        std::fs::write(&kernel, bytes).unwrap();
        let run = mote.run(&["run", "--kernel", path, &reference]);
        run.expect_failure(&["not a kernel", path]);
    }
    mote.run(&["run", "--kernel", "/no/such/kernel", &reference])
        .expect_failure(&["/no/such/kernel"]);

    let mut image = vec![0; 0x2000];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x1000u16.to_le_bytes());
    image[0x1200..0x1209].copy_from_slice(b"9.9-none ");
    std::fs::write(&kernel, &image).unwrap();
    let run = mote.run(&["run", "--kernel", path, &reference]);
    run.expect_failure(&["9.9-none", "--kernel-modules"]);
}

#[test]
fn a_run_from_a_layout_keeps_the_image_without_a_name() {
    let mote = mote();
    let layout = image();
    mote.run(&["run", &layout.reference("t")]).expect(125);
    assert_eq!(mote.images(), ["<none>:<none>"]);
    let loaded = mote.load(&layout.reference("t"));
    assert_eq!(loaded["layers_converted"], 0);
    mote.assert_consistent();
}

#[test]
fn images_are_listed_as_docker_lists_them() {
    let mote = Mote::new();
    assert_eq!(
        mote.run(&["images"]).expect(0).stdout,
        "REPOSITORY   TAG   IMAGE ID   CREATED   SIZE\n"
    );
    let layout = image();
    let loaded = mote.load(&layout.reference("t"));
    let table = mote.run(&["images"]).expect(0).stdout;
    let id = loaded["id"].as_str().unwrap();
    assert!(table.contains(&id["sha256:".len()..][..12]), "{table}");
}

#[test]
fn a_store_that_cannot_be_used_is_named_with_what_to_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mote = Mote::new();
    let mut command = mote.command(&["images"]);
    command.env("MOTE_ROOT", file.path().join("store"));
    support::Run::of(command.output().unwrap())
        .expect_failure(&[file.path().to_str().unwrap(), "MOTE_ROOT"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mote = Mote::new();
    let mut command = mote.command(&["images"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    support::Run::of(command.output().unwrap()).expect(0);
}

#[test]
fn what_runs_is_listed_whatever_else_is_there_and_however_it_is_called() {
    let mote = Mote::new();
    let image = "oci:/tmp/\u{1b}[2Jx:\u{202e}t";
    let machine = RunningMachine {
        id: "ab".repeat(32),
        name: None,
        image: image.to_owned(),
        image_id: None,
        command: vec!["true".to_owned()],
        cpu_template: None,
        memory_bytes: 64 << 20,
        started_unix_seconds: 1,
        vmm_pid: None,
        landlock: None,
        metrics: None,
    };
    let store = Store::open(mote.root.path()).unwrap();
    let _registration = store.running().register(machine).unwrap();
    let running = mote.root.path().join("running");
    std::fs::create_dir(running.join("cd34")).unwrap();
    std::os::unix::fs::symlink("/no/such/file", running.join("ef56")).unwrap();
    let table = mote.run(&["ps"]).expect(0).stdout;
    assert!(table.contains("oci:/tmp/[2Jx:t   true"), "{table}");
    let documents: Vec<Value> = mote.run(&["ps", "--format", "json"]).expect(0).json();
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0]["image"], image);
}

#[test]
fn the_doctor_prints_every_check_and_exits_by_the_result() {
    let mote = mote();
    mote.install_vmm(
        r#"echo '{"api_version":12,"ran":true,"missing_instructions":["popcnt"],"cpl0_instructions_per_second":1780000,"error":null}'"#,
    );
    let run = mote.run(&["doctor", "--format", "json"]).expect(1);
    let documents: Vec<Value> = run.json();
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0]["can_run_linux"], false);
    let checks = documents[0]["checks"].as_array().unwrap();
    assert_eq!(checks.len(), hostagent::doctor::CHECKS.len());
    for check in checks {
        let missing = check["status"] == "missing";
        assert_eq!(check["advice"].is_string(), missing, "{check}");
    }
    assert_eq!(checks[0]["name"], "kvm");
    assert_ne!(checks[0]["kvm"], "hardware");

    let text = mote.run(&["doctor"]).expect(1).stdout;
    for check in hostagent::doctor::CHECKS {
        assert!(text.contains(check.name), "{text}");
    }
    assert!(text.contains("cannot run here"), "{text}");
}

#[test]
fn arguments_that_are_no_text_are_an_error_and_no_crash() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let not_text = OsStr::from_bytes(b"a\xff");
    for before in [&[][..], &["run"], &["run", "--env"], &["ps", "--format"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mote"));
        let output = command.args(before).arg(not_text).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with("error: "), "{errors}");
    }
}

#[test]
fn what_the_policy_refuses_is_not_fetched_from_peers() {
    let config = tempfile::tempdir().unwrap();
    let key = config.path().join("key.pub");
    let mote = mote();
    let fetch = |policy: &str, name: &str| {
        std::fs::write(config.path().join("policy.toml"), policy).unwrap();
        let mut command = mote.command(&["node", "fetch", name]);
        support::Run::of(command.env("MOTE_CONFIG", config.path()).output().unwrap())
    };
    fetch("default = \"reject\"\n", "demo:v1").expect_failure(&["demo:v1", "policy"]);
    fetch("default = \"digest\"\n", "demo:v1").expect_failure(&["digest"]);
    let public = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAbyTVBRToL/BvLi1MWrn00r/UOPNjUQqjK9FYd7KuZ7o=\n\
        -----END PUBLIC KEY-----\n";
    std::fs::write(&key, public).unwrap();
    let signed = format!(
        "default = \"accept\"\n[[repository]]\nmatch = \"docker.io/library/demo\"\nrequire = \"signature\"\nkeys = [\"{}\"]\n",
        key.display()
    );
    fetch(&signed, "demo:v1").expect_failure(&["peer", "signature"]);
    // Accepted, and then there are no peers.
    fetch(&signed, "other:v1").expect_failure(&["peers.toml"]);
}
