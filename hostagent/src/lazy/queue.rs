//! What is to be fetched of blobs, and when.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::artifact::{Access, MAX_ACCESSES};

/// A workload that reads nothing that is missing for so long has started up.
const QUIET: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Queue {
    /// What somebody waits for.
    pub wanted: VecDeque<(usize, Range<u64>)>,
    /// What nobody waits for, in order: what earlier starts read.
    pub early: VecDeque<(usize, Range<u64>)>,
    /// All.
    pub rest: VecDeque<(usize, Range<u64>)>,
    pub phase: Phase,
    /// What is on its way: blobs and pieces of 16 groups.
    pub on_the_way: BTreeSet<(usize, u64)>,
    /// What was wanted, in order, for the next start.
    pub accesses: Vec<Access>,
    pub failures: u32,
    pub last_save: Option<Instant>,
    pub stopped: bool,
}

/// How far the workload has come whose disk this is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Phase {
    /// It has not been started.
    #[default]
    Boot,
    /// It starts up; since when nobody has wanted anything.
    StartUp(Instant),
    /// It works.
    Work,
}

impl Queue {
    /// How long the rest has to wait, if nothing happens; `None`: for ever.
    pub fn rest_waits(&self) -> Option<Duration> {
        match self.phase {
            Phase::Boot => None,
            Phase::StartUp(since) => Some(QUIET.saturating_sub(since.elapsed())),
            Phase::Work => Some(Duration::ZERO),
        }
    }

    /// Takes note of what is wanted, for the next start.
    pub fn note(&mut self, blob: usize, groups: &Range<u64>) {
        let blob = blob as u32;
        let count = u32::try_from(groups.end - groups.start).unwrap_or(u32::MAX);
        if let Some(last) = self.accesses.last_mut() {
            let end = last.first_group + u64::from(last.groups);
            if last.blob == blob && end == groups.start {
                last.groups = last.groups.saturating_add(count);
                return;
            }
        }
        if self.accesses.len() < MAX_ACCESSES {
            self.accesses.push(Access {
                blob,
                first_group: groups.start,
                groups: count,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_waits_for_a_workload_that_has_been_quiet_or_has_started_up() {
        let waits = |phase| {
            let queue = Queue {
                phase,
                ..Queue::default()
            };
            queue.rest_waits()
        };
        assert_eq!(waits(Phase::Boot), None);
        let now = Instant::now();
        assert!(waits(Phase::StartUp(now + QUIET)).is_some_and(|time| !time.is_zero()));
        let quiet = now
            .checked_sub(QUIET)
            .expect("a machine that has run for long enough");
        assert_eq!(waits(Phase::StartUp(quiet)), Some(Duration::ZERO));
        assert_eq!(waits(Phase::Work), Some(Duration::ZERO));
    }
}
