//! What taking images in costs, and what verifying them at every read costs.
//!
//! mote is measured beside what anybody has: `tar` and `sync` for an archive, reads that
//! are not verified for reads that are.

mod load;
mod reads;

use std::path::Path;

use crate::comparison::{Bar, Comparison};
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

/// Measures `runs` turns; `progress` is told what is being done.
pub fn run(
    setup: &Setup,
    runs: usize,
    mut progress: impl FnMut(&str),
) -> Result<Comparison, BenchError> {
    progress("preparing the images");
    let images = load::Images::prepare(setup)?;
    let mut loads = Vec::new();
    let mut reads = Vec::new();
    for turn in 1..=runs {
        progress(&format!("turn {turn} of {runs}, taking images in"));
        loads.push(images.turn()?);
        progress(&format!("turn {turn} of {runs}, reading"));
        reads.push(reads::turn(&images.blob()?)?);
    }
    let setting = format!("an archive of {:.0} MiB with one layer", images.mib());
    let mut comparison = Comparison::new("image", runs, setting, &[]);
    let identity = |name: &str, version: &str| Identity {
        name: name.to_owned(),
        version: version.to_owned(),
    };
    comparison.monitors = vec![
        identity("mote", "this one"),
        identity("beside it", "the system's"),
    ];
    comparison.groups = vec![
        load::times(&loads),
        load::bytes(&loads),
        reads::rates(&reads),
    ];
    let ratio = |group: usize, row: usize| -> f64 {
        let group = comparison.groups.get(group);
        let row = group.and_then(|group| group.rows.get(row));
        row.and_then(|row| row.ratio.as_ref())
            .map_or(0.0, |ratio| ratio.p50)
    };
    let share = |ratio: f64| 100.0 / ratio.max(f64::MIN_POSITIVE);
    let bar = |text: &str, found: String, reached| Bar {
        text: text.to_owned(),
        found,
        reached,
    };
    let load = 1.0 / ratio(0, 0).max(f64::MIN_POSITIVE);
    let (time, bytes) = (share(ratio(0, 1)), share(ratio(1, 0)));
    let again = ratio(2, 0).min(ratio(2, 1));
    let cold = ratio(2, 4).min(ratio(2, 5));
    comparison.bars = vec![
        bar(
            "an archive in at most 1.2 times the time of tar x and sync",
            format!("{load:.2}"),
            load <= 1.2,
        ),
        bar(
            "a second image with one layer of 1 MiB more in at most 3 % of the time and the bytes",
            format!("{time:.1} % and {bytes:.1} %"),
            time <= 3.0 && bytes <= 3.0,
        ),
        bar(
            "reads at 0.85 of unverified ones again, at 0.7 when they are first read from the disk",
            format!("{again:.2} and {cold:.2} at least"),
            again >= 0.85 && cold >= 0.7,
        ),
    ];
    Ok(comparison)
}
