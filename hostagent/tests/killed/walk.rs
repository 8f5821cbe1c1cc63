//! A command that is killed at each of its steps in turn.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hostagent::store::Store;
use libtest_mimic::Failed;
use serde_json::Value;

use crate::looks::{Looks, images};
use crate::support::{Mote, Run};
use crate::tracer::{self, Change, Moment, Verdict};
use crate::tree;

/// Of the writes to one file, the first is a step, and then one in so many.
const WRITES: usize = 16;
/// Walks go on in so many threads.
const THREADS: usize = 2;

/// A command, and the store on which it is to be killed.
pub struct Walk<'w> {
    pub before: &'w Mote,
    pub arguments: &'w [&'w str],
    /// Something in the store is wrong, which the command mends.
    pub damaged: bool,
    /// It is killed at so many points at least.
    pub least: usize,
}

/// The calls of a process that are steps.
#[derive(Default)]
struct Steps {
    seen: usize,
    writes: HashMap<u64, usize>,
}

impl Steps {
    fn is_step(&mut self, change: &Change, moment: Moment) -> bool {
        let Change::Write { inode, .. } = change else {
            return true;
        };
        if let Moment::After { .. } = moment {
            return false;
        }
        let count = self.writes.entry(*inode).or_default();
        *count += 1;
        *count % WRITES == 1
    }
}

impl Walk<'_> {
    /// Kills the command before each of its steps, and after it; an error if these are
    /// fewer than they must be.
    pub fn go(&self) -> Result<(), Failed> {
        let before = images(self.before);
        let undisturbed = self.copy();
        undisturbed.run(self.arguments).expect(0);
        let after = Looks::of(&undisturbed);
        let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let point = next.fetch_add(1, Ordering::SeqCst);
                        let killed = self.kill_at(point, &before, &after);
                        if !killed {
                            over.store(true, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        let walked = next.into_inner() - THREADS;
        let command = self.arguments[..2].join(" ");
        println!("{command}: killed at {walked} points");
        match walked >= self.least {
            true => Ok(()),
            false => {
                Err(format!("{command} has only {walked} steps: they are not all seen").into())
            }
        }
    }

    fn copy(&self) -> Mote {
        let mote = Mote::in_memory();
        tree::copy(self.before.root.path(), mote.root.path());
        mote
    }

    /// False if the command ended before.
    fn kill_at(&self, point: usize, before: &[Value], after: &Looks) -> bool {
        let mote = self.copy();
        let root = mote.root.path().canonicalize().unwrap();
        let mut steps = Steps::default();
        let mut place = String::new();
        let mut command = mote.command(self.arguments);
        let ended = tracer::run(&mut command, &root, |_, change, moment| {
            if !steps.is_step(change, moment) {
                return Verdict::GoOn;
            }
            steps.seen += 1;
            if steps.seen <= point {
                return Verdict::GoOn;
            }
            if place.is_empty() {
                place = described(change, moment, &root);
            }
            Verdict::Kill
        });
        let ended = ended.unwrap();
        if let Some(code) = ended.code {
            assert_eq!(code, 0, "{ended:?}");
            return false;
        }
        let place = format!("{:?} killed at point {point}, {place}", self.arguments);
        // All or nothing, and readable.
        let seen = images(&mote);
        assert!(seen == before || seen == after.images, "{place}: {seen:#?}");
        if self.damaged {
            self.again(&mote, &place);
            self.verify(&mote, &place);
        } else if point.is_multiple_of(2) {
            self.verify(&mote, &place);
            self.again(&mote, &place);
        } else {
            self.again(&mote, &place);
            self.verify(&mote, &place);
        }
        mote.assert_consistent();
        assert_eq!(&Looks::of(&mote), after, "{place}");
        let store = Store::open(mote.root.path()).unwrap();
        store.collect().unwrap();
        let leases = std::fs::read_dir(mote.root.path().join("leases")).unwrap();
        assert_eq!(leases.count(), 0, "{place}: left in leases");
        true
    }

    fn again(&self, mote: &Mote, place: &str) {
        let run = mote.run(self.arguments);
        assert_eq!(run.code, Some(0), "{place}: {run:#?}");
    }

    fn verify(&self, mote: &Mote, place: &str) {
        let run: Run = mote.run(&["store", "verify", "--no-fetch", "--format", "json"]);
        assert_eq!(run.code, Some(0), "{place}: {run:#?}");
        let report = run.json().remove(0);
        for problems in ["wrong", "broken"] {
            assert_eq!(
                report[problems].as_array().unwrap().len(),
                0,
                "{place}: {report:#}"
            );
        }
    }
}

fn described(change: &Change, moment: Moment, root: &Path) -> String {
    let text = match change {
        Change::Write { offset, bytes, .. } => {
            format!("write of {} bytes at {offset}", bytes.len())
        }
        change => format!("{change:?}"),
    };
    format!("{moment:?} {text}").replace(&format!("{}/", root.display()), "")
}
