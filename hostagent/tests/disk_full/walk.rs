//! A command on disks that are full at each of its steps in turn.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libtest_mimic::Failed;

use crate::looks::{Looks, images};
use crate::small_disk::SmallStore;
use crate::support::{Mote, Run};

/// Disks that are tried, at most.
const MOST: u64 = 400;
/// Walks go on in so many threads.
const THREADS: usize = 2;

/// A command, and the store that it is to fill the disk of.
pub struct Walk<'w> {
    pub before: &'w Mote,
    pub arguments: &'w [&'w str],
    /// Something in the store is wrong, which the command mends.
    pub damaged: bool,
    /// The exit code when the disk is full.
    pub code: i32,
    /// Each disk is larger than the one before by so many pages.
    pub pages: u64,
    /// It finds the disk full while it does so many things at least.
    pub least: usize,
}

impl Walk<'_> {
    /// Runs the command on a disk that is full, on one with a little room, and so on, until
    /// there is enough; an error if it was not full often enough.
    pub fn go(&self) -> Result<(), Failed> {
        let before = images(&SmallStore::copy(self.before).mote);
        let undisturbed = SmallStore::copy(self.before);
        let used = undisturbed.disk.used();
        undisturbed.mote.run(self.arguments).expect(0);
        let after = Looks::of(&undisturbed.mote);
        let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let attempted = Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let step = next.fetch_add(1, Ordering::SeqCst);
                        assert!(step < MOST, "it never succeeds");
                        match self.fill(used + step * self.pages, &before, &after) {
                            Some(attempt) => drop(attempted.lock().unwrap().insert(attempt)),
                            None => over.store(true, Ordering::SeqCst),
                        }
                    }
                });
            }
        });
        let attempted = attempted.into_inner().unwrap();
        let command = self.arguments[..2].join(" ");
        println!(
            "{command}: {} disks, full while {attempted:#?}",
            next.into_inner()
        );
        match attempted.len() >= self.least {
            true => Ok(()),
            false => Err(format!("{command}: it was not full at all steps").into()),
        }
    }

    /// Runs it on a disk of so many pages. If that is full: what it then said that it was
    /// doing.
    fn fill(&self, pages: u64, before: &[serde_json::Value], after: &Looks) -> Option<String> {
        let SmallStore { disk, mote } = &SmallStore::copy(self.before);
        disk.resize(pages);
        let run = mote.run(self.arguments);
        let place = format!("{:?} on {pages} pages", self.arguments);
        let attempt = match run.code {
            Some(0) => None,
            code => {
                assert_eq!(code, Some(self.code), "{place}: {run:#?}");
                Some(attempt(&run, &place))
            }
        };
        // Nothing half made, and what was there is there, on the full disk still.
        let seen = images(mote);
        assert!(
            seen == before || seen == after.images,
            "{place}: {seen:#?} {run:#?}"
        );
        for directory in ["staging", "locks", "leases"] {
            let left = std::fs::read_dir(mote.root.path().join(directory));
            assert_eq!(left.map_or(0, Iterator::count), 0, "{place}: {directory}");
        }
        if !(self.damaged && attempt.is_some()) {
            self.verify(mote, &place);
        }
        disk.make_room();
        let run = mote.run(self.arguments);
        assert_eq!(run.code, Some(0), "{place}, again: {run:#?}");
        self.verify(mote, &place);
        mote.assert_consistent();
        assert_eq!(&Looks::of(mote), after, "{place}");
        attempt
    }

    fn verify(&self, mote: &Mote, place: &str) {
        let run = mote.run(&["store", "verify", "--no-fetch", "--format", "json"]);
        assert_eq!(run.code, Some(0), "{place}: {run:#?}");
        let report = &run.json()[0];
        for part in ["wrong", "broken"] {
            let found = report[part].as_array().map(Vec::len);
            assert_eq!(found, Some(0), "{place}: {run:#?}");
        }
    }
}

/// What it was doing when it found no space, as it said; without digests and numbers.
fn attempt(run: &Run, place: &str) -> String {
    let words = ["no space left for the store", "MiB are free", "MOTE_ROOT"];
    for word in words {
        assert!(run.stderr.contains(word), "{place}: {run:#?}");
    }
    assert!(!run.stderr.contains("panicked"), "{place}: {run:#?}");
    let said = run.stderr.split(" while ").nth(1).unwrap_or_default();
    let said = said.split(" MiB are free").next().unwrap_or_default();
    let is_word = |word: &&str| word.bytes().all(|byte| byte.is_ascii_alphabetic());
    let words: Vec<&str> = said.split(' ').filter(is_word).collect();
    words.join(" ")
}
