//! `mote stats`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use hostagent::running::RunningMachine;
use hostagent::stats::{self, Usage};
use hostagent::store::Store;
use serde::Serialize;
use vmm::metrics::reader::{DeviceCounts, Snapshot};

use super::format::{FORMAT_HELP, Format};
use super::output::{print, size, table};
use super::run::SHORT_ID;

/// How long the use of processors is measured.
const SAMPLE: Duration = Duration::from_millis(500);

/// Device types of virtio 1.3, section 5.
const NETWORK: u64 = 1;
const BLOCK: u64 = 2;

/// Tell what the microVMs that run use, once.
///
/// Counts come from memory that each VMM shares with its agent, so a VMM that is stuck
/// is told of too. docs/metrics.md says what they mean; JSON has all of them, by vCPU
/// and device, with histograms of latencies.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mote stats\n  mote stats web --format json | jq .metrics.devices"
)]
pub struct StatsArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Their names, or their ids or the starts of them. Omitted: all that run.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// All that is known of one microVM; what cannot be read is missing.
#[derive(Debug, Serialize)]
struct Stats {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Snapshot>,
}

/// Prints one row for each microVM.
pub fn main(args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let registry = store.running();
    let machines = match args.names.is_empty() {
        true => registry.list().context("cannot read what runs")?,
        false => {
            let found = args.names.iter().map(|name| registry.find(name));
            found.collect::<Result<_, _>>()?
        }
    };
    let all = sample(machines);
    match &args.format {
        Format::Documents(format) => format.print_all(&all)?,
        Format::Table => {
            let rows: Vec<_> = all.iter().map(row).collect();
            let headings = [
                "ID",
                "NAME",
                "CPU %",
                "MEM USAGE",
                "NET I/O",
                "BLOCK I/O",
                "BLOCK P99",
                "EXITS",
            ];
            print(&table(headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks at all of them, and once more a moment later.
fn sample(machines: Vec<RunningMachine>) -> Vec<Stats> {
    let usage = |machine: &RunningMachine| Usage::of_process(machine.vmm_pid?).ok();
    let begun = Instant::now();
    let earlier: Vec<Option<Usage>> = machines.iter().map(usage).collect();
    if !machines.is_empty() {
        std::thread::sleep(SAMPLE);
    }
    let elapsed = begun.elapsed();
    let both = machines.into_iter().zip(earlier);
    both.map(|(machine, earlier)| {
        let usage = usage(&machine);
        let percent = |earlier: Usage| Some(usage?.cpu_percent_since(&earlier, elapsed));
        Stats {
            cpu_percent: earlier.and_then(percent),
            usage,
            // One that is starting has none yet, and one that has just ended no more.
            metrics: machine.metrics.and_then(|path| stats::metrics(&path).ok()),
            id: machine.id,
            name: machine.name,
        }
    })
    .collect()
}

fn row(stats: &Stats) -> [String; 8] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let metrics = stats.metrics.as_ref();
    let moved = |kind| or_dash(metrics.map(|metrics| moved(metrics, kind)));
    let exits = |metrics: &Snapshot| {
        let exits = metrics.vcpus.iter().map(|vcpu| vcpu.exits());
        exits.fold(0, u64::saturating_add).to_string()
    };
    [
        stats.id.chars().take(SHORT_ID).collect(),
        stats.name.clone().unwrap_or_default(),
        or_dash(stats.cpu_percent.map(|percent| format!("{percent:.2}%"))),
        or_dash(stats.usage.map(|usage| size(usage.resident_bytes))),
        moved(NETWORK),
        moved(BLOCK),
        or_dash(metrics.and_then(slowest_disk).map(time)),
        or_dash(metrics.map(exits)),
    ]
}

fn of_kind(metrics: &Snapshot, kind: u64) -> impl Iterator<Item = &DeviceCounts> {
    metrics
        .devices
        .iter()
        .filter(move |device| device.kind == kind)
}

/// What the guest has got, and what it has given.
fn moved(metrics: &Snapshot, kind: u64) -> String {
    let sum = |bytes: fn(&DeviceCounts) -> u64| {
        let all = of_kind(metrics, kind).map(bytes);
        size(all.fold(0, u64::saturating_add))
    };
    format!(
        "{} / {}",
        sum(|device| device.bytes_to_guest),
        sum(|device| device.bytes_from_guest)
    )
}

/// What 99 of 100 requests took at most, on the disk where that is longest.
fn slowest_disk(metrics: &Snapshot) -> Option<u64> {
    let disks = of_kind(metrics, BLOCK);
    disks.filter_map(|disk| disk.service.percentile(99)).max()
}

fn time(ns: u64) -> String {
    match ns {
        0..=9_999 => format!("{ns}ns"),
        10_000..=9_999_999 => format!("{}us", ns / 1_000),
        10_000_000..=9_999_999_999 => format!("{}ms", ns / 1_000_000),
        _ => format!("{}s", ns / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_which_nothing_is_known_yet_is_a_row_of_dashes() {
        let stats = Stats {
            id: "0123456789abcdef".to_owned(),
            name: None,
            cpu_percent: None,
            usage: None,
            metrics: None,
        };
        let wanted = ["0123456789ab", "", "-", "-", "-", "-", "-", "-"];
        assert_eq!(row(&stats), wanted);
        let json = serde_json::to_string(&stats).unwrap();
        assert_eq!(json, r#"{"id":"0123456789abcdef"}"#);
    }

    #[test]
    fn times_have_a_unit_a_person_would_use() {
        let texts = [1023, 131_071, 16_777_215, 17_179_869_183].map(time);
        assert_eq!(texts, ["1023ns", "131us", "16ms", "17s"]);
    }
}
