//! What one `mote` has another's microVM do.

use std::io::Write;
use std::process::Child;

use e2e::{finish, image, mote, run_until_ready};

/// A microVM called `name` that has printed "ready".
fn start(name: &str, script: &str) -> Child {
    let limits = "bps=1g,iops=100k";
    run_until_ready([
        "--name",
        name,
        "--disk",
        limits,
        &image(),
        "/bin/sh",
        "-c",
        script,
    ])
}

#[test]
fn a_microvm_is_paused_updated_and_goes_on() {
    let mut run = start("paused", "echo ready; cat");
    mote(["pause", "paused"]).expect(0);
    // Nothing happens twice.
    mote(["pause", "paused"]).expect(0);
    run.stdin.as_mut().unwrap().write_all(b"alive\n").unwrap();
    mote(["update", "--disk", "iops=1000", "paused"]).expect(0);
    mote(["unpause", "paused"]).expect(0);
    mote(["update", "-m", "400m", "--disk", "none", "paused"]).expect(0);
    let more = mote(["update", "-m", "64g", "paused"]).expect(125);
    assert!(
        more.errors().contains("cannot have more"),
        "{}",
        more.errors()
    );
    let no_nic = mote(["update", "--network", "none", "paused"]).expect(125);
    assert!(no_nic.errors().contains("net0"), "{}", no_nic.errors());
    drop(run.stdin.take());
    assert_eq!(finish(run).expect(0).text(), "alive");
    let gone = mote(["pause", "paused"]).expect(125);
    assert!(gone.errors().contains("mote ps"), "{}", gone.errors());
}

#[test]
fn a_command_that_is_stopped_ends_as_it_likes() {
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let run = start("obedient", script);
    // Also while it is paused.
    mote(["pause", "obedient"]).expect(0);
    let stopped = mote(["stop", "-t", "60", "obedient"]).expect(0);
    assert_eq!(stopped.text(), "obedient");
    assert_eq!(finish(run).expect(7).text(), "bye");
}

#[test]
fn a_command_that_does_not_listen_is_ended() {
    let run = start(
        "deaf",
        "trap '' TERM; echo ready; while :; do sleep 1; done",
    );
    mote(["stop", "-t", "1", "deaf"]).expect(0);
    finish(run).expect(137);
    assert_eq!(
        mote(["ps", "--format", "json"])
            .expect(0)
            .text()
            .matches("deaf")
            .count(),
        0
    );
}
