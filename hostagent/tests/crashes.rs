//! Loads that do not end as they should: killed, interrupted, out of space.
//! Afterwards the store is as it was, and the next load works.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{Layout, Mote, Run, Stored, layer, noise};

fn layers() -> Vec<Vec<u8>> {
    (0..4)
        .map(|seed| layer(&[("data", &noise(seed + 100, 8_000_000))]))
        .collect()
}

#[test]
fn after_kill_9_at_any_point_the_next_load_works_and_nothing_stays_behind() {
    const ROUNDS: u64 = 24;
    let layout = Layout::with_image(&layers(), Stored::Gzip, "registry.example/app:v1");
    let reference = layout.reference("registry.example/app:v1");
    // How long a load takes here decides when to kill one.
    let whole = {
        let mote = Mote::new();
        let start = std::time::Instant::now();
        mote.load(&reference);
        start.elapsed()
    };
    let mote = Mote::new();
    let mut killed = 0;
    for round in 0..ROUNDS {
        let mut child = mote
            .command(&["load", &reference])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let fraction = f64::from((round * 37 % ROUNDS) as u32) / ROUNDS as f64;
        std::thread::sleep(whole.mul_f64(fraction * 1.1));
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().code().is_none());

        // All or nothing, and readable at any time.
        let images = mote.images();
        assert!(
            images.is_empty() || images == ["registry.example/app:v1"],
            "{images:?}"
        );
        if round % 6 == 5 {
            mote.load(&reference);
            mote.assert_consistent();
            assert_eq!(mote.layer_count(), 4);
            for name in ["layers", "disks", "images.json", "images.copy.json"] {
                let path = mote.root.path().join(name);
                if path.is_dir() {
                    std::fs::remove_dir_all(path).unwrap();
                } else {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
    }
    assert!(killed > 0, "every load ended before it was killed");
    mote.load(&reference);
    mote.assert_consistent();
}

#[test]
fn an_interrupted_load_removes_what_it_had_and_exits_by_the_signal() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    // A pipe that never ends keeps it busy, and a FIFO that nobody opens.
    for arguments in [vec!["load"], vec!["load", "-i", fifo.to_str().unwrap()]] {
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            interrupt_load(&arguments, signal).expect(code);
        }
    }
}

fn interrupt_load(arguments: &[&str], signal: Signal) -> Run {
    let mote = Mote::new();
    let mut child = mote
        .command(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let format = mote.root.path().join("format");
    // A bound against hanging, not a measurement.
    for _ in 0..600 {
        if format.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&child), signal).unwrap();
    drop(child.stdin.take());
    let run = Run::of(child.wait_with_output().unwrap());
    assert!(run.stderr.contains("interrupted"), "{run:?}");
    assert!(!mote.root.path().join("images.json").exists());
    mote.assert_consistent();
    run
}

#[test]
fn a_write_that_fails_midway_leaves_nothing_behind() {
    let layout = Layout::with_image(&layers(), Stored::Plain, "t");
    let reference = layout.reference("t");
    // The limit on a file's size is reached at different points: in the first
    // document, in a layer, at its end.
    for blocks in [1, 100, 10_000] {
        let mote = Mote::new();
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_mote"), "load"])
            .arg(&reference)
            .env("MOTE_ROOT", mote.root.path());
        let run = Run::of(command.output().unwrap());
        run.expect_failure(&["File too large"]);
        assert_eq!(mote.images(), [""; 0]);
        mote.assert_consistent();
        mote.load(&reference);
        mote.assert_consistent();
    }
}
