//! Commands on a disk that remembers, and what must be true when the power fails.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hostagent::store::Store;

use crate::disk::{Disk, Loss, Tree};
use crate::support::Mote;
use crate::tracer::{self, Change, Moment, Verdict};

/// States are checked in so many threads.
const THREADS: usize = 2;
/// Between syncs, the power fails after one in so many changes.
const BETWEEN: usize = 3;

/// A command that was run.
#[derive(Debug)]
struct Ran {
    command: String,
    begun: usize,
    /// When it said that it had done it, if it was not killed before.
    done: Option<usize>,
    /// The names of the images when it has been done.
    names: Vec<String>,
}

/// What was done to a store that was empty at first.
pub struct History {
    mote: Mote,
    root: PathBuf,
    disk: Disk,
    ran: Vec<Ran>,
    /// When something was synced.
    syncs: Vec<usize>,
}

/// A moment at which the power fails, and what is lost then.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    time: usize,
    loss: Loss,
}

impl History {
    pub fn new() -> Self {
        let mote = Mote::new();
        let root = mote.root.path().canonicalize().unwrap();
        let inode = root.metadata().unwrap().ino();
        Self {
            mote,
            root,
            disk: Disk::new(inode),
            ran: Vec::new(),
            syncs: Vec::new(),
        }
    }

    /// Runs a command, after which there are images of these names.
    pub fn run(&mut self, arguments: &[&str], names: &[&str]) {
        let code = self.trace(arguments, names, |_| Verdict::GoOn);
        assert_eq!(code, Some(0), "{arguments:?}");
    }

    /// The same with a command that is killed when it has put so many things in place: made
    /// a directory, or renamed. False if it ends before.
    pub fn run_killed(&mut self, arguments: &[&str], names: &[&str], placed: usize) -> bool {
        let mut seen = 0;
        let code = self.trace(arguments, names, |change| {
            let places = matches!(change, Change::MakeDirectory { .. } | Change::Rename { .. });
            seen += usize::from(places);
            match seen == placed {
                true => Verdict::Kill,
                false => Verdict::GoOn,
            }
        });
        code.is_none()
    }

    fn trace(
        &mut self,
        arguments: &[&str],
        names: &[&str],
        mut verdict: impl FnMut(&Change) -> Verdict,
    ) -> Option<i32> {
        let begun = self.disk.now();
        let mut entered = HashMap::new();
        let mut command = self.mote.command(arguments);
        let (disk, syncs, root) = (&mut self.disk, &mut self.syncs, &self.root);
        let ended = tracer::run(&mut command, root, |thread, change, moment| {
            let Moment::After { made } = moment else {
                entered.insert(thread, disk.now());
                return Verdict::GoOn;
            };
            disk.change(change, made, entered[&thread], root);
            if matches!(change, Change::Sync { .. } | Change::SyncAll) {
                syncs.push(disk.now());
            }
            verdict(change)
        });
        let code = ended.unwrap().code;
        self.ran.push(Ran {
            command: arguments[..2].join(" "),
            begun,
            done: code.map(|_| self.disk.now()),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        });
        code
    }

    /// The moments around each sync and at the end of each command, and some in between.
    pub fn failures(&self) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut fail = |time, loss| failures.push(Failure { time, loss });
        for after in &self.syncs {
            let before = after - 1;
            for loss in [Loss::Content, Loss::Names, Loss::Some(1)] {
                fail(before, loss);
            }
            for loss in [Loss::Everything, Loss::Some(2)] {
                fail(*after, loss);
            }
        }
        for time in (0..self.disk.now()).step_by(BETWEEN) {
            fail(time, Loss::Some(3));
        }
        failures.extend(self.ends());
        failures
    }

    /// The ends of commands.
    pub fn ends(&self) -> Vec<Failure> {
        let ends = self.ran.iter().filter_map(|ran| ran.done);
        let losses = [Loss::Everything, Loss::Content, Loss::Names];
        ends.flat_map(|time| {
            let losses = losses.into_iter().chain((4..8).map(Loss::Some));
            losses.map(move |loss| Failure { time, loss })
        })
        .collect()
    }

    /// Lets the power fail in each of these ways, and looks whether the store is as it must
    /// be, and takes the image `reference`; returns how many states that were.
    pub fn check(&self, failures: &[Failure], reference: &str) -> usize {
        let (next, checked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let known = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some(failure) = failures.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let tree = self.disk.after_loss(failure.time, failure.loss);
                        let expected = self.expected(failure.time);
                        let state = (tree.digest(), expected.clone());
                        if known.lock().unwrap().insert(state) {
                            let count = checked.fetch_add(1, Ordering::SeqCst);
                            let place = format!("{failure:?} {}", self.place(failure.time));
                            check(&tree, &expected, reference, count % 2 == 0, &place);
                        }
                    }
                });
            }
        });
        checked.into_inner()
    }

    /// Which names there may be when the power has failed then.
    fn expected(&self, time: usize) -> Vec<Vec<String>> {
        let done = |ran: &&Ran| ran.done.is_some_and(|done| done <= time);
        let last = self.ran.iter().rposition(|ran| done(&ran));
        let mut expected = vec![last.map_or(Vec::new(), |last| self.ran[last].names.clone())];
        let later = &self.ran[last.map_or(0, |last| last + 1)..];
        let begun = later.iter().filter(|ran| ran.begun < time);
        expected.extend(begun.map(|ran| ran.names.clone()));
        expected
    }

    fn place(&self, time: usize) -> String {
        let ran = self.ran.iter().rfind(|ran| ran.begun < time);
        ran.map_or_else(String::new, |ran| {
            format!("{} events into {}", time - ran.begun, ran.command)
        })
    }
}

fn check(tree: &Tree, expected: &[Vec<String>], reference: &str, verify_first: bool, place: &str) {
    let mote = Mote::new();
    tree.write(mote.root.path());
    let images = mote.images();
    assert!(
        expected.contains(&images),
        "{place}: {images:?}, not {expected:?}"
    );
    // Nothing that a record of an image leads to is in part.
    let store = Store::open(mote.root.path()).unwrap();
    for image in store.images().unwrap() {
        let verified = store.verify(&image);
        assert!(verified.is_ok(), "{place}: {:?}: {verified:?}", image.names);
    }
    let verify = || {
        let run = mote.run(&["store", "verify", "--no-fetch"]);
        assert_eq!(run.code, Some(0), "{place}: {run:#?}");
    };
    let load = || {
        let run = mote.run(&["load", reference]);
        assert_eq!(run.code, Some(0), "{place}: {run:#?}");
    };
    if verify_first {
        verify();
        load();
    } else {
        load();
        verify();
    }
    let store = Store::open(mote.root.path()).unwrap();
    for image in store.images().unwrap() {
        let verified = store.verify(&image);
        assert!(verified.is_ok(), "{place}: {:?}: {verified:?}", image.names);
    }
}
