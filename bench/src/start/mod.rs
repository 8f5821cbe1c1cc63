//! How fast a microVM starts, and what it costs while it idles.
//!
//! Every virtual machine monitor boots the same guest with direct KVM, 128 MiB and
//! one vCPU. The guest's first act is to write a byte to its serial port; then it
//! powers off, or idles while its monitor's memory is looked at. The clock starts
//! before anything is done for the machine (a pipe is made, `/dev/kvm` opened) and
//! is read when the byte arrives and when the process is gone. The monitors take
//! turns, so that what else the machine does befalls them alike.

mod plot;
mod report;
mod trial;

pub use plot::write as write_plot;
pub use report::{Measured, Report};

use trial::Trial;

use crate::error::BenchError;
use crate::footprint::Footprint;
use crate::monitor::{Monitor, Programs};
use crate::statistics::Distribution;

/// The guest's memory.
pub const MEMORY_MIB: u64 = 128;

/// Runs of each monitor that are not counted: they fill the page cache.
const WARM_UP_RUNS: usize = 3;

/// Idling machines whose memory is looked at; the median is reported.
const FOOTPRINTS: usize = 5;

/// Starts the guest `runs` times, at least once, by each of `programs`; `progress` is
/// told what is being done.
pub fn run(
    programs: &Programs,
    runs: usize,
    mut progress: impl FnMut(&str),
) -> Result<Report, BenchError> {
    let (guest, idle) = (trial::short_lived()?, trial::idle()?);
    let monitors = programs.monitors()?;
    for monitor in &monitors {
        progress(&format!("{}, warming up", monitor.name()));
        for _ in 0..WARM_UP_RUNS {
            trial::run(monitor, &guest)?;
        }
    }
    let mut trials: Vec<Vec<Trial>> = vec![Vec::new(); monitors.len()];
    for turn in 1..=runs.max(1) {
        progress(&format!("start {turn} of {runs}"));
        for (monitor, trials) in monitors.iter().zip(&mut trials) {
            trials.push(trial::run(monitor, &guest)?);
        }
    }
    let mut measured = Vec::new();
    for (monitor, trials) in monitors.iter().zip(trials) {
        progress(&format!("{}, memory", monitor.name()));
        let footprints = (0..FOOTPRINTS)
            .map(|_| trial::footprint(monitor, &idle))
            .collect::<Result<Vec<_>, _>>()?;
        measured.push(measure(monitor, &trials, footprints)?);
    }
    Ok(Report::new(runs, measured))
}

fn measure(
    monitor: &Monitor,
    trials: &[Trial],
    mut footprints: Vec<Footprint>,
) -> Result<Measured, BenchError> {
    let distribution = |of: fn(&Trial) -> f64| {
        Distribution::of(trials.iter().map(of).collect()).ok_or(BenchError::NoRuns)
    };
    footprints.sort_by_key(|footprint| footprint.rss_kib);
    let median = footprints.get(footprints.len() / 2);
    Ok(Measured {
        name: monitor.name().to_owned(),
        version: monitor.version().to_owned(),
        first_instruction: distribution(|trial| trial.first_instruction_ms)?,
        whole_process: distribution(|trial| trial.whole_process_ms)?,
        footprint: *median.ok_or(BenchError::NoRuns)?,
    })
}
