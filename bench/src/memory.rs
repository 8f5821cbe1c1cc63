//! What idle machines cost, one and many.
//!
//! So many bare-metal guests of 128 MiB and one vCPU are started, confined as the
//! agent confines them, write a byte and halt. Then their monitors' memory is looked
//! at. `docs/benchmarks.md` says what the quantities hold.

use std::fs;
use std::time::Duration;

use crate::comparison::{Bar, Better, Comparison, Group};
use crate::error::{BenchError, host};
use crate::footprint::{self, Footprint};
use crate::interruption;
use crate::monitor::{Guest, Machine, Monitor, Programs};

const MEMORY_MIB: u64 = 128;
/// Numbers of machines that a monitor is asked for unless told otherwise.
pub const COUNTS: [usize; 4] = [1, 10, 100, 500];
/// From the last start to the look at memory, and from the last end to the next.
const SETTLE: Duration = Duration::from_millis(1500);
/// How much of the host's available memory machines may come to, in percent.
const SHARE: u64 = 60;

/// mote's own bars, in KiB.
const RSS_BAR_KIB: f64 = 2048.0;
const PSS_BAR: (usize, f64) = (100, 350.0);
const HOST_BAR: (usize, f64) = (500, 1024.0);

/// What a number of machines costs, in KiB for each.
#[derive(Debug, Clone, Copy)]
struct Trial {
    rss: f64,
    pss: f64,
    host: f64,
    kernel: f64,
}

/// Measures each of `counts` machines at once, `runs` times; `progress` is told what
/// is being done. A peer for which a number would take more memory than there is is
/// spared it.
pub fn run(
    programs: &Programs,
    counts: &[usize],
    runs: usize,
    mut progress: impl FnMut(&str),
) -> Result<Comparison, BenchError> {
    let monitors = programs.monitors()?;
    let guest = Guest::bare_metal(probe_guests::FIRST_INSTRUCTION, "idle", MEMORY_MIB)?;
    // Fills the page cache, and makes what the kernel keeps once it has it.
    for monitor in &monitors {
        progress(&format!("{}, warming up", monitor.name()));
        trial(monitor, &guest, 2, &mut progress)?;
    }
    let mut results: Vec<Vec<Vec<Trial>>> = Vec::new();
    for &count in counts {
        let fits: Vec<bool> = monitors
            .iter()
            .enumerate()
            .map(|(index, _)| fits(&results, counts, index, count))
            .collect::<Result<_, _>>()?;
        let mut trials = vec![Vec::new(); monitors.len()];
        for turn in 1..=runs {
            for ((monitor, trials), fits) in monitors.iter().zip(&mut trials).zip(&fits) {
                if *fits {
                    let mut tell = |what: &str| {
                        progress(&format!(
                            "turn {turn} of {runs}, {}: {what} of {count} machines",
                            monitor.name()
                        ));
                    };
                    trials.push(trial(monitor, &guest, count, &mut tell)?);
                }
            }
        }
        results.push(trials);
    }
    Ok(report(&monitors, counts, runs, &results))
}

/// Whether `count` machines of the monitor number `index` leave the host memory, by
/// what fewer of them took.
fn fits(
    results: &[Vec<Vec<Trial>>],
    counts: &[usize],
    index: usize,
    count: usize,
) -> Result<bool, BenchError> {
    let last = results.iter().zip(counts).rev();
    let mut last = last.filter(|(_, fewer)| **fewer <= count);
    let Some((trials, _)) = last.next() else {
        return Ok(true);
    };
    let each = trials[index].iter().map(|trial| trial.pss.max(trial.host));
    // None: it had no room for fewer.
    let Some(each) = each.reduce(f64::max) else {
        return Ok(false);
    };
    let available = Meminfo::read()?.available * SHARE / 100;
    Ok(each * count as f64 <= available as f64)
}

fn trial(
    monitor: &Monitor,
    guest: &Guest,
    count: usize,
    progress: &mut impl FnMut(&str),
) -> Result<Trial, BenchError> {
    let before = settled()?;
    let mut machines: Vec<Machine<'_>> = Vec::with_capacity(count);
    for number in 1..=count {
        if number % 10 == 1 {
            progress(&format!("start {number}"));
        }
        let mut machine = monitor.start(guest)?;
        machine.wait_for(probe_guests::FIRST_BYTE)?;
        machines.push(machine);
    }
    progress("the memory");
    let during = settled()?;
    let footprints = machines
        .iter()
        .map(|machine| look_at(monitor, machine))
        .collect::<Result<Vec<_>, _>>()?;
    progress("the end");
    drop(machines);
    let after = settled()?;
    // What others took or gave back meanwhile is halved, and shows in the spread.
    let grown = |of: fn(&Meminfo) -> u64| {
        let without = (of(&before) + of(&after)) as f64 / 2.0;
        (of(&during) as f64 - without) / count as f64
    };
    Ok(Trial {
        rss: median(footprints.iter().map(|footprint| footprint.rss_kib)),
        pss: median(footprints.iter().map(|footprint| footprint.pss_kib)),
        host: -grown(|meminfo| meminfo.available),
        kernel: grown(|meminfo| meminfo.kernel),
    })
}

fn look_at(monitor: &Monitor, machine: &Machine<'_>) -> Result<Footprint, BenchError> {
    footprint::read(machine.id(), MEMORY_MIB << 10)
        .map_err(host("read the memory map of a process"))?
        .map_err(|found| BenchError::GuestMapping {
            name: monitor.name().to_owned(),
            found,
        })
}

fn median(values: impl Iterator<Item = u64>) -> f64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).map_or(0.0, |kib| *kib as f64)
}

/// Fields of `/proc/meminfo` (proc_meminfo(5)), in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meminfo {
    /// What new programs could have.
    available: u64,
    /// What the kernel keeps for itself by name and cannot give up.
    kernel: u64,
}

/// What makes [`Meminfo::kernel`].
const KERNEL_FIELDS: [&str; 5] = [
    "SUnreclaim",
    "KernelStack",
    "PageTables",
    "SecPageTables",
    "Percpu",
];

impl Meminfo {
    fn read() -> Result<Self, BenchError> {
        let text = fs::read_to_string("/proc/meminfo").map_err(host("read /proc/meminfo"))?;
        Self::parse(&text)
            .ok_or_else(|| std::io::Error::other("/proc/meminfo has no MemAvailable"))
            .map_err(host("read how much memory is available"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            let (_, value) = fields.find(|(key, _)| *key == name)?;
            value.trim().split(' ').next()?.parse::<u64>().ok()
        };
        Some(Self {
            available: field("MemAvailable")?,
            // Kernels before 6.0 have no SecPageTables.
            kernel: KERNEL_FIELDS.iter().filter_map(|name| field(name)).sum(),
        })
    }
}

fn settled() -> Result<Meminfo, BenchError> {
    interruption::sleep(SETTLE)?;
    Meminfo::read()
}

fn report(
    monitors: &[Monitor],
    counts: &[usize],
    runs: usize,
    results: &[Vec<Vec<Trial>>],
) -> Comparison {
    let setting = format!("idle guests of {MEMORY_MIB} MiB and 1 vCPU");
    let mut comparison = Comparison::new("memory", runs, setting, monitors);
    type Quantity = (&'static str, fn(&Trial) -> f64);
    let quantities: [Quantity; 4] = [
        ("RSS of each, without the guest's", |trial| trial.rss),
        ("PSS of each, without the guest's", |trial| trial.pss),
        ("host memory for each, all in", |trial| trial.host),
        ("of that the kernel's, by name", |trial| trial.kernel),
    ];
    for (title, of) in quantities {
        let mut group = Group {
            title: title.to_owned(),
            unit: "KiB".to_owned(),
            better: Better::Less,
            rows: Vec::new(),
        };
        for (count, trials) in counts.iter().zip(results) {
            let values = trials
                .iter()
                .map(|trials| trials.iter().map(of).collect::<Vec<_>>());
            group.push(format!("{count} at once"), values.collect());
        }
        comparison.groups.push(group);
    }
    let figure = |quantity: usize, count: usize| {
        let row = counts.iter().position(|known| *known == count)?;
        let rows = &comparison.groups.get(quantity)?.rows;
        Some(rows.get(row)?.measured.first()?.as_ref()?.p50)
    };
    let rss = counts.iter().filter_map(|count| figure(0, *count));
    let mut bars = vec![("RSS of any".to_owned(), rss.reduce(f64::max), RSS_BAR_KIB)];
    let (count, limit) = PSS_BAR;
    bars.push((format!("PSS of each of {count}"), figure(1, count), limit));
    let (count, limit) = HOST_BAR;
    bars.push((
        format!("host memory for each of {count}"),
        figure(2, count),
        limit,
    ));
    comparison.bars = bars
        .into_iter()
        .filter_map(|(what, found, limit)| {
            let found = found?;
            Some(Bar {
                text: format!("{what} at most {limit} KiB"),
                found: format!("{found:.0} KiB"),
                reached: found <= limit,
            })
        })
        .collect();
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_cannot_give_up_is_added_up() {
        let text = "MemTotal:       24683916 kB\nMemAvailable:   22760000 kB\n\
                    SReclaimable:    9000000 kB\nSUnreclaim:         1000 kB\n\
                    KernelStack:          20 kB\nPercpu:                3 kB\n";
        let expected = Meminfo {
            available: 22_760_000,
            kernel: 1023,
        };
        assert_eq!(Meminfo::parse(text), Some(expected));
        assert_eq!(Meminfo::parse("MemTotal: 1 kB"), None);
    }
}
