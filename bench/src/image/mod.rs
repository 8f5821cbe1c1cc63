//! What taking images in costs, and what verifying them at every read costs.
//!
//! mote is measured beside what anybody has: `tar` and `sync` for an archive, reads that
//! are not verified for reads that are, a pull and a start for a start at once.

pub mod guests;
mod layout;
mod load;
mod pull;
mod random;
mod reads;

use std::path::Path;

use load::Images;

use crate::comparison::{Bar, Comparison, Row};
use crate::error::BenchError;
use crate::monitor::Identity;

/// What is measured, and with what.
#[derive(Debug)]
pub struct Setup<'s> {
    /// The program `mote`.
    pub mote: &'s Path,
    /// The reference of an image with one layer of some 200 MiB.
    pub reference: &'s str,
    /// A directory on the disk that is measured.
    pub directory: &'s Path,
}

/// Who is measured.
fn beside() -> Vec<Identity> {
    let identity = |name: &str, version: &str| Identity {
        name: name.to_owned(),
        version: version.to_owned(),
    };
    vec![
        identity("mote", "this one"),
        identity("beside it", "the system's"),
    ]
}

/// What is measured in turns, prepared once.
pub struct Prepared<'s> {
    setup: &'s Setup<'s>,
    images: Images,
}

impl<'s> Prepared<'s> {
    /// Makes the images.
    pub fn new(setup: &'s Setup<'s>) -> Result<Self, BenchError> {
        let images = Images::prepare(setup)?;
        Ok(Self { setup, images })
    }

    /// The directory with what [`guests`] needs.
    pub fn for_guests(&self) -> Result<&Path, BenchError> {
        self.images.for_guests()
    }

    /// Measures `runs` turns of what needs no guest; `progress` is told what is being done.
    pub fn measure(
        &self,
        runs: usize,
        mut progress: impl FnMut(&str),
    ) -> Result<Comparison, BenchError> {
        let registry = pull::Registry::start()?;
        let mut loads = Vec::new();
        let mut reads = Vec::new();
        let mut pulls = Vec::new();
        for turn in 1..=runs {
            progress(&format!("turn {turn} of {runs}, taking images in"));
            loads.push(self.images.turn()?);
            progress(&format!("turn {turn} of {runs}, reading"));
            reads.push(reads::turn(&self.images.blob()?)?);
            progress(&format!("turn {turn} of {runs}, pulling layers of 4 GiB"));
            pulls.push(registry.pull(self.setup.mote, self.setup.directory)?);
        }
        let setting = format!("an archive of {:.0} MiB with one layer", self.images.mib());
        let mut comparison = Comparison::new("image", runs, setting, &[]);
        comparison.monitors = beside();
        comparison.groups = vec![
            load::times(&loads),
            load::bytes(&loads),
            reads::rates(&reads),
            pull::memory(&pulls),
        ];
        Ok(comparison)
    }
}

/// Adds what was measured where guests run.
pub fn add_guests(comparison: &mut Comparison, guests: Comparison) {
    let turns = guests.turns;
    comparison.setting += &format!("; {turns} turns where guests run");
    comparison.groups.extend(guests.groups);
    comparison.made_again.extend(guests.made_again);
}

/// Adds the bars of all that was measured.
pub fn add_bars(comparison: &mut Comparison) {
    let row = |title: &str, row: &str| -> Option<&Row> {
        let mut groups = comparison.groups.iter();
        let group = groups.find(|group| group.title == title)?;
        group
            .rows
            .iter()
            .find(|found| row.is_empty() || found.name == row)
    };
    let ratio = |row: Option<&Row>| row.and_then(|row| Some(row.ratio.as_ref()?.p50));
    let own = |row: &Row| Some(row.measured.first()?.as_ref()?.p50);
    let most = |title: &str| {
        let group = comparison.groups.iter().find(|group| group.title == title);
        let rows = group.into_iter().flat_map(|group| &group.rows);
        rows.filter_map(own).reduce(f64::max)
    };
    let share = |ratio: f64| 100.0 / ratio.max(f64::MIN_POSITIVE);
    let least = |rows: &[&str]| {
        let mut ratios = rows.iter().map(|name| ratio(row(reads::TITLE, name)));
        ratios.try_fold(f64::INFINITY, |least, ratio| Some(least.min(ratio?)))
    };
    let load = ratio(row(load::TIMES, load::LOAD)).map(|ratio| 1.0 / ratio);
    let second = [load::TIMES, load::BYTES].map(|title| ratio(row(title, load::SECOND)));
    let second = second[0].map(share).zip(second[1].map(share));
    let reads = least(&reads::ROWS[..2]).zip(least(&reads::ROWS[4..]));
    let bars = [
        (
            "an archive of 202 MiB in at most 6 s, where guests run",
            most(guests::TIMES).map(|seconds| (format!("{seconds:.1} s"), seconds <= 6.0)),
        ),
        (
            "an archive in at most 1.2 times the time of tar x and sync",
            load.map(|load| (format!("{load:.2}"), load <= 1.2)),
        ),
        (
            "a second image with one layer of 1 MiB more in at most 3 % of the time and the bytes",
            second.map(|(time, bytes)| {
                let reached = time <= 3.0 && bytes <= 3.0;
                (format!("{time:.1} % and {bytes:.1} %"), reached)
            }),
        ),
        (
            "at most 10 % of an image fetched until the first output",
            ratio(row(guests::FETCHED, ""))
                .map(share)
                .map(|fetched| (format!("{fetched:.1} %"), fetched <= 10.0)),
        ),
        (
            "reads at 0.85 of unverified ones again, at 0.7 when they are first read from the disk",
            reads.map(|(again, first)| {
                let reached = again >= 0.85 && first >= 0.7;
                (format!("{again:.2} and {first:.2} at least"), reached)
            }),
        ),
        (
            "a layer of 4 GiB pulled in at most 96 MiB of memory",
            most(pull::TITLE).map(|mib| (format!("{mib:.1} MiB"), mib <= 96.0)),
        ),
    ];
    let bar = |(text, found): (&str, Option<(String, bool)>)| {
        let (found, reached) = found.unwrap_or(("not measured".to_owned(), false));
        Bar {
            text: text.to_owned(),
            found,
            reached,
        }
    };
    comparison.bars = bars.into_iter().map(bar).collect();
}
