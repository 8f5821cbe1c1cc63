//! What leaving the guest costs.
//!
//! A bare-metal guest does one thing over and over, tells so by a byte on its serial
//! port, and does the next. The clock is read on the host as the bytes arrive. The
//! monitors take turns, with a new machine in each.

use std::time::Instant;

use crate::comparison::{Better, Comparison, Group};
use crate::error::BenchError;
use crate::monitor::{Guest, Monitor, Programs};

const MEMORY_MIB: u64 = 128;
/// How often a guest does each thing.
const REPETITIONS: u32 = 20_000;

/// Microseconds for each of the guest's phases.
type Trial = [f64; probe_guests::EXITS_PHASES.len()];

/// Measures `runs` turns; `progress` is told what is being done.
pub fn run(
    programs: &Programs,
    runs: usize,
    mut progress: impl FnMut(&str),
) -> Result<Comparison, BenchError> {
    let monitors = programs.without_firecracker()?;
    let mut guest = Guest::bare_metal(probe_guests::EXITS, format!("{REPETITIONS}"), MEMORY_MIB)?;
    guest.entropy = true;
    let mut trials: Vec<Vec<Trial>> = vec![Vec::new(); monitors.len()];
    for turn in 1..=runs {
        for (monitor, trials) in monitors.iter().zip(&mut trials) {
            progress(&format!("turn {turn} of {runs}, {}", monitor.name()));
            trials.push(trial(monitor, &guest)?);
        }
    }
    let setting = format!("{REPETITIONS} exits of each kind");
    let mut comparison = Comparison::new("exits", runs, setting, &monitors);
    let mut group = Group {
        title: "time per exit and back".to_owned(),
        unit: "µs".to_owned(),
        better: Better::Less,
        rows: Vec::new(),
    };
    for (phase, (_, name)) in probe_guests::EXITS_PHASES.iter().enumerate() {
        let values = trials
            .iter()
            .map(|trials| trials.iter().filter_map(|trial| trial.get(phase).copied()));
        group.push(*name, values.map(Iterator::collect).collect());
    }
    comparison.groups.push(group);
    Ok(comparison)
}

fn trial(monitor: &Monitor, guest: &Guest) -> Result<Trial, BenchError> {
    let mut machine = monitor.start(guest)?;
    machine.wait_for(probe_guests::FIRST_BYTE)?;
    let mut trial = [0.0; probe_guests::EXITS_PHASES.len()];
    for ((expected, _), took) in probe_guests::EXITS_PHASES.iter().zip(&mut trial) {
        let clock = Instant::now();
        let found = machine.byte()?;
        *took = clock.elapsed().as_secs_f64() * 1e6 / f64::from(REPETITIONS);
        if found != *expected {
            return Err(BenchError::Unexpected {
                name: monitor.name().to_owned(),
                found: char::from(found).to_string(),
                expected: char::from(*expected).to_string(),
            });
        }
    }
    machine.wait()?;
    Ok(trial)
}
