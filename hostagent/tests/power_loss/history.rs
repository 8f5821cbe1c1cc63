//! Commands on a disk that remembers, and what must be true when the power fails.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hostagent::store::Store;

use crate::disk::{Disk, Loss, Tree};
use crate::support::{Mote, Run};
use crate::tracer::{self, Change, Moment, Verdict};

/// States are checked in so many threads.
const THREADS: usize = 2;
/// Between syncs, the power fails after one in so many changes.
const BETWEEN: usize = 3;

/// What must be true of the images that are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Images {
    /// All of them is here.
    Whole,
    /// What is here is right.
    InPart,
    /// Something is wrong; what it is of is told, and can be fetched.
    Damaged,
}

/// What is done to a store next: it must work.
pub type Next<'n> = &'n (dyn Fn(&Mote) -> Run + Sync);

/// A command that was run.
#[derive(Debug)]
struct Ran {
    command: String,
    begun: usize,
    /// When it said that it had done it, if it was not killed before.
    done: Option<usize>,
    /// The names of the images when it has been done.
    names: Vec<String>,
    images: Images,
}

/// What was done to a store that was empty at first.
pub struct History {
    pub mote: Mote,
    root: PathBuf,
    disk: Disk,
    ran: Vec<Ran>,
    /// When the last of these was begun.
    begun: usize,
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
        let mote = Mote::in_memory();
        let root = mote.root.path().canonicalize().unwrap();
        let inode = root.metadata().unwrap().ino();
        Self {
            mote,
            root,
            disk: Disk::new(inode),
            ran: Vec::new(),
            begun: 0,
            syncs: Vec::new(),
        }
    }

    /// Runs a command, after which there are images of these names, whole.
    pub fn run(&mut self, arguments: &[&str], names: &[&str]) {
        let command = self.mote.command(arguments);
        self.run_other(command, &arguments[..2].join(" "), names, Images::Whole);
    }

    /// Runs another program that works on the store.
    pub fn run_other(&mut self, mut command: Command, what: &str, names: &[&str], images: Images) {
        let code = self.trace(&mut command, |_| Verdict::GoOn);
        assert_eq!(code, Some(0), "{what}");
        self.note(what, code, names, images);
    }

    /// Flips a bit of a file, on the disk too.
    pub fn damage(&mut self, file: &Path, names: &[&str]) {
        let open = File::options().read(true).write(true).open(file).unwrap();
        let metadata = open.metadata().unwrap();
        let (inode, offset) = (metadata.ino(), metadata.len() / 2);
        let mut bytes = vec![0];
        open.read_exact_at(&mut bytes, offset).unwrap();
        bytes[0] ^= 1;
        open.write_all_at(&bytes, offset).unwrap();
        self.begun = self.disk.now();
        let write = Change::Write {
            inode,
            offset,
            bytes,
        };
        for change in [write, Change::Sync { inode }] {
            self.disk.change(&change, None, self.disk.now(), &self.root);
        }
        self.note("a flipped bit", Some(0), names, Images::Damaged);
    }

    /// The same with a command that is killed when it has put so many things in place: made
    /// a directory, or renamed. False if it ends before.
    pub fn run_killed(&mut self, arguments: &[&str], names: &[&str], placed: usize) -> bool {
        let mut seen = 0;
        let mut command = self.mote.command(arguments);
        let code = self.trace(&mut command, |change| {
            let places = matches!(change, Change::MakeDirectory { .. } | Change::Rename { .. });
            seen += usize::from(places);
            match seen == placed {
                true => Verdict::Kill,
                false => Verdict::GoOn,
            }
        });
        self.note(&arguments[..2].join(" "), code, names, Images::Whole);
        code.is_none()
    }

    fn trace(
        &mut self,
        command: &mut Command,
        mut verdict: impl FnMut(&Change) -> Verdict,
    ) -> Option<i32> {
        self.begun = self.disk.now();
        let mut entered = HashMap::new();
        let (disk, syncs, root) = (&mut self.disk, &mut self.syncs, &self.root);
        let ended = tracer::run(command, root, |thread, change, moment| {
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
        ended.unwrap().code
    }

    fn note(&mut self, command: &str, code: Option<i32>, names: &[&str], images: Images) {
        self.ran.push(Ran {
            command: command.to_owned(),
            begun: self.begun,
            done: code.map(|_| self.disk.now()),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            images,
        });
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
    /// be, and does what is next; returns how many states that were.
    pub fn check(&self, failures: &[Failure], next_command: Next) -> usize {
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
                            check(&tree, &expected, next_command, count % 2 == 0, &place);
                        }
                    }
                });
            }
        });
        checked.into_inner()
    }

    /// What there may be when the power has failed then.
    fn expected(&self, time: usize) -> Expected {
        let done = |ran: &Ran| ran.done.is_some_and(|done| done <= time);
        let last = self.ran.iter().rposition(done);
        let later = &self.ran[last.map_or(0, |last| last + 1)..];
        let begun = later.iter().filter(|ran| ran.begun < time);
        let possible = last.map(|last| &self.ran[last]).into_iter().chain(begun);
        let mut expected = Expected {
            names: Vec::new(),
            images: Images::Whole,
        };
        if last.is_none() {
            expected.names.push(Vec::new());
        }
        for ran in possible {
            expected.names.push(ran.names.clone());
            expected.images = expected.images.max(ran.images);
        }
        expected
    }

    fn place(&self, time: usize) -> String {
        let ran = self.ran.iter().rfind(|ran| ran.begun < time);
        ran.map_or_else(String::new, |ran| {
            format!("{} events into {}", time - ran.begun, ran.command)
        })
    }
}

/// What there may be after a power loss.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Expected {
    /// Names of images.
    names: Vec<Vec<String>>,
    images: Images,
}

fn check(tree: &Tree, expected: &Expected, next: Next, verify_first: bool, place: &str) {
    let mote = Mote::in_memory();
    tree.write(mote.root.path());
    let images = mote.images();
    assert!(
        expected.names.contains(&images),
        "{place}: {images:?}, not {expected:?}"
    );
    if expected.images == Images::Whole {
        assert_whole(&mote, place);
    }
    let next = || {
        let run = next(&mote);
        assert_eq!(run.code, Some(0), "{place}: {run:#?}");
    };
    if verify_first && expected.images != Images::Damaged {
        assert_right(&mote, place);
        next();
    } else {
        next();
        assert_right(&mote, place);
    }
    assert_whole(&mote, place);
}

/// Nothing that a record of an image leads to is in part.
fn assert_whole(mote: &Mote, place: &str) {
    let store = Store::open(mote.root.path()).unwrap();
    for image in store.images().unwrap() {
        let verified = store.verify(&image);
        assert!(verified.is_ok(), "{place}: {:?}: {verified:?}", image.names);
    }
}

/// Nothing is other than it should be. What nobody needed may have been removed by half.
fn assert_right(mote: &Mote, place: &str) {
    let run = mote.run(&["store", "verify", "--no-fetch", "--format", "json"]);
    assert_eq!(run.code, Some(0), "{place}: {run:#?}");
    let report = run.json().remove(0);
    for wrong in report["wrong"].as_array().unwrap() {
        let problem = wrong["problem"].as_str().unwrap();
        assert!(
            problem.contains("is missing from the store"),
            "{place}: {report:#}"
        );
    }
}
