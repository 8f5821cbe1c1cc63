//! Registries that let their clients wait: for each other, or until Ctrl-C.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hostagent::image::digest::Digest;
use libtest_mimic::Failed;
use rustix::process::{Pid, Signal, kill_process};

use crate::http_server::{Request, Server};
use crate::memory_registry::{Content, answer, content};
use crate::support::{Layout, Mote, Run, Stored, config, layer, noise};
use crate::{Test, blob_count, wait_until};

pub const TESTS: &[Test] = &[
    (
        "layers_of_one_image_are_downloaded_at_the_same_time_as_many_as_are_allowed",
        parallel,
    ),
    ("a_push_that_is_interrupted_stops_at_once", push),
    (
        "a_save_that_is_interrupted_leaves_the_file_that_was_there_and_no_other",
        save,
    ),
    (
        "a_save_that_is_interrupted_while_it_writes_leaves_nothing_half_written",
        save_midway,
    ),
    (
        "a_verification_that_is_interrupted_while_it_mends_leaves_nothing_half_made",
        verify,
    ),
];

fn layers() -> Vec<Vec<u8>> {
    (0..2)
        .map(|seed| layer(&[("data", &noise(seed + 40, 500_000))]))
        .collect()
}

fn image() -> (Layout, Content) {
    let layout = Layout::new();
    let descriptor = layout.image(&config(&layers()), &layers(), Stored::Plain);
    let content = content(&layout, "v1", descriptor["digest"].as_str().unwrap());
    (layout, content)
}

/// Answers to requests for layers wait until each layer was asked for, or so long; returns
/// whether each was before one was answered.
fn met(parallel: usize, bound: Duration) -> Result<bool, Failed> {
    let (_layout, content) = image();
    let digests: BTreeSet<String> = layers().iter().map(|l| Digest::of(l).to_string()).collect();
    let all = digests.len();
    let asked = Arc::new((Mutex::new(BTreeSet::new()), Condvar::new()));
    let alone = Arc::new(AtomicBool::new(false));
    let (waiting, was_alone) = (Arc::clone(&asked), Arc::clone(&alone));
    let server = Server::start(move |request| {
        let name = request.path().rsplit('/').next().unwrap().to_owned();
        if digests.contains(&name) {
            let (asked, changed) = &*waiting;
            let mut asked = asked.lock().unwrap();
            asked.insert(name);
            changed.notify_all();
            let waited = changed.wait_timeout_while(asked, bound, |asked| asked.len() < all);
            if waited.unwrap().1.timed_out() {
                was_alone.store(true, Ordering::SeqCst);
            }
        }
        answer(request, &mut content.clone())
    });
    let settings = tempfile::tempdir()?;
    std::fs::write(
        settings.path().join("registries.toml"),
        format!("[download]\nparallel_layers = {parallel}\n"),
    )?;
    let mote = Mote::new();
    let mut command = mote.command(&["pull", &format!("{}/app:v1", server.host())]);
    Run::of(command.env("MOTE_CONFIG", settings.path()).output()?).expect(0);
    mote.assert_consistent();
    assert_eq!(asked.0.lock().unwrap().len(), all);
    Ok(!alone.load(Ordering::SeqCst))
}

fn parallel() -> Result<(), Failed> {
    // Bounds against hanging, not measurements.
    assert!(met(2, Duration::from_secs(20))?);
    assert!(!met(1, Duration::from_millis(500))?);
    Ok(())
}

/// A registry that does not answer some requests while it is closed.
struct Gate {
    server: Server,
    closed: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
}

impl Gate {
    fn start(
        content: Content,
        is_kept_waiting: impl Fn(&Request) -> bool + Send + Sync + 'static,
    ) -> Self {
        let (closed, waiting) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let content = Mutex::new(content);
        let (gate, count) = (Arc::clone(&closed), Arc::clone(&waiting));
        let server = Server::start(move |request| {
            if is_kept_waiting(request) && gate.load(Ordering::SeqCst) {
                AtomicUsize::fetch_add(&count, 1, Ordering::SeqCst);
                while gate.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            answer(request, &mut content.lock().unwrap())
        });
        Self {
            server,
            closed,
            waiting,
        }
    }

    fn name(&self) -> String {
        format!("{}/app:v1", self.server.host())
    }

    /// Interrupts a command that waits for an answer.
    fn interrupt(&self, mote: &Mote, arguments: &[&str]) -> Result<Run, Failed> {
        self.waiting.store(0, Ordering::SeqCst);
        self.closed.store(true, Ordering::SeqCst);
        let child = started(mote, arguments)?;
        wait_until(|| self.waiting.load(Ordering::SeqCst) > 0);
        let start = Instant::now();
        kill_process(Pid::from_child(&child), Signal::INT)?;
        let run = Run::of(child.wait_with_output()?);
        let run = told(run, mote);
        // The usual patience with a server is longer.
        assert!(start.elapsed() < Duration::from_secs(20), "{run:?}");
        self.closed.store(false, Ordering::SeqCst);
        Ok(run)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

fn started(mote: &Mote, arguments: &[&str]) -> Result<Child, Failed> {
    let mut command = mote.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// It was interrupted, says so at the end, and has nothing in the works.
#[track_caller]
fn told(run: Run, mote: &Mote) -> Run {
    let run = run.expect(130);
    assert!(run.stderr.ends_with("interrupted\n"), "{run:?}");
    assert_eq!(run.stdout, "");
    for directory in ["staging", "locks", "leases"] {
        let left = std::fs::read_dir(mote.root.path().join(directory));
        assert_eq!(left.map_or(0, Iterator::count), 0, "{directory}");
    }
    run
}

fn push() -> Result<(), Failed> {
    let kept_waiting: [fn(&Request) -> bool; 3] = [
        |request| request.method == "GET" || request.method == "HEAD",
        |request| request.method == "POST",
        |request| request.method == "PUT",
    ];
    for kept_waiting in kept_waiting {
        let gate = Gate::start(Content::new(), kept_waiting);
        let layout = Layout::with_image(&layers(), Stored::Plain, &gate.name());
        let mote = Mote::new();
        mote.load(&layout.reference(&gate.name()));
        gate.interrupt(&mote, &["push", &gate.name()])?;
        mote.assert_consistent();
        mote.run(&["push", &gate.name()]).expect(0);
    }
    Ok(())
}

/// A registry whose layers can be kept waiting for, and a store that has pulled from it.
fn pulled() -> (Gate, Mote) {
    let layer = Digest::of(&layers()[1]).to_string();
    let (_layout, content) = image();
    let gate = Gate::start(content, move |request| request.path().ends_with(&layer));
    let mote = Mote::new();
    mote.run(&["pull", &gate.name()]).expect(0);
    (gate, mote)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn save() -> Result<(), Failed> {
    let (gate, mote) = pulled();
    let before = blob_count(&mote);
    std::fs::remove_dir_all(mote.layer_blob(Digest::of(&layers()[1])))?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("app.tar");
    std::fs::write(&archive, "old")?;
    let arguments = ["save", "-o", archive.to_str().unwrap(), &gate.name()];
    let run = gate.interrupt(&mote, &arguments)?;
    assert!(run.stderr.contains("completing it"), "{run:?}");
    assert_eq!(std::fs::read(&archive)?, b"old");
    assert_eq!(names(directory.path()), ["app.tar"]);
    assert_eq!(blob_count(&mote), before - 1);
    mote.run(&arguments).expect(0);
    assert!(std::fs::read(&archive)?.len() > 1_000_000);
    mote.assert_consistent();
    Ok(())
}

fn save_midway() -> Result<(), Failed> {
    let name = "big:v1";
    let big = [layer(&[("zeroes", &vec![0; 64 << 20])])];
    let layout = Layout::with_image(&big, Stored::Zstd, name);
    let mote = Mote::new();
    mote.load(&layout.reference(name));
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("big.tar");
    let arguments = ["save", "-o", archive.to_str().unwrap(), name];
    // It may be over before it is interrupted.
    for _ in 0..10 {
        let child = started(&mote, &arguments)?;
        let part = format!("big.tar.part-{}", child.id());
        let is_written = || {
            let names = names(directory.path());
            names.contains(&part) || names.contains(&"big.tar".to_owned())
        };
        while !is_written() {
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_process(Pid::from_child(&child), Signal::INT)?;
        let run = Run::of(child.wait_with_output()?);
        if run.code != Some(0) {
            told(run, &mote);
            assert_eq!(names(directory.path()), [""; 0]);
            mote.assert_consistent();
            mote.run(&arguments).expect(0);
            return Ok(());
        }
        std::fs::remove_file(&archive)?;
    }
    Err("every save was over before it was interrupted".into())
}

fn verify() -> Result<(), Failed> {
    let (gate, mote) = pulled();
    let data = mote.layer_blob(Digest::of(&layers()[1])).join("data");
    let mut bytes = std::fs::read(&data)?;
    bytes[300_000] ^= 1;
    std::fs::write(&data, bytes)?;
    gate.interrupt(&mote, &["store", "verify"])?;
    let run = mote.run(&["store", "verify"]).expect(0);
    assert!(run.stdout.contains("Fetched again: "), "{run:?}");
    mote.assert_consistent();
    Ok(())
}
