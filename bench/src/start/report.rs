//! What was found, as a table and as JSON.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::MEMORY_MIB;
use crate::footprint::Footprint;
use crate::host::Host;
use crate::statistics::Distribution;

/// mote's own bars.
const FIRST_INSTRUCTION_BAR_MS: f64 = 2.5;
const RSS_BAR_KIB: u64 = 2 << 10;

/// What was found of one monitor.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The monitor.
    pub name: String,
    /// What it says its version is.
    pub version: String,
    /// From the start to the guest's first byte.
    pub first_instruction: Distribution,
    /// From the start to the end of the process.
    pub whole_process: Distribution,
    /// While the guest idles.
    pub footprint: Footprint,
}

/// A duration that was measured of every monitor.
pub(super) struct Quantity {
    /// What it is.
    pub title: &'static str,
    /// Where it is.
    pub of: fn(&Measured) -> &Distribution,
}

/// In the order of time.
pub(super) const QUANTITIES: [Quantity; 2] = [
    Quantity {
        title: "start to first guest instruction",
        of: |measured| &measured.first_instruction,
    },
    Quantity {
        title: "start to end of the process",
        of: |measured| &measured.whole_process,
    },
];

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was measured where.
    pub setting: Setting,
    /// Each monitor; mote's is the first.
    pub monitors: Vec<Measured>,
}

/// What was measured where.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// Runs of each monitor.
    pub runs: usize,
    /// The guest's memory.
    pub guest_memory_mib: u64,
    /// The guest's vCPUs.
    pub guest_vcpus: u32,
    /// The machine.
    #[serde(flatten)]
    pub host: Host,
}

impl Report {
    /// A report on `monitors`, made on this machine, now.
    pub fn new(runs: usize, monitors: Vec<Measured>) -> Self {
        Self {
            setting: Setting::here(runs),
            monitors,
        }
    }

    /// JSON, for programs.
    pub fn to_json(&self) -> String {
        // Nothing in it can fail: no maps with odd keys, no foreign code.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl Setting {
    fn here(runs: usize) -> Self {
        Self {
            runs,
            guest_memory_mib: MEMORY_MIB,
            guest_vcpus: 1,
            host: Host::here(),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let setting = &self.setting;
        writeln!(
            f,
            "{} starts each, guest of {} MiB and {} vCPU, {}",
            setting.runs, setting.guest_memory_mib, setting.guest_vcpus, setting.host,
        )?;
        let widest = self.monitors.iter().map(|m| m.name.len()).max();
        let width = widest.unwrap_or(0);
        for Quantity { title, of } in &QUANTITIES {
            writeln!(f, "\n{title}, ms")?;
            writeln!(f, "  {:width$}      p50      p99      min      max", "")?;
            for monitor in &self.monitors {
                let d = of(monitor);
                writeln!(
                    f,
                    "  {:width$} {:8.2} {:8.2} {:8.2} {:8.2}",
                    monitor.name, d.p50_ms, d.p99_ms, d.min_ms, d.max_ms
                )?;
            }
        }
        writeln!(f, "\nmemory beyond the guest's while it idles, MiB")?;
        writeln!(f, "  {:width$}      RSS      PSS", "")?;
        for monitor in &self.monitors {
            let mib = |kib: u64| kib as f64 / 1024.0;
            let footprint = monitor.footprint;
            writeln!(
                f,
                "  {:width$} {:8.2} {:8.2}",
                monitor.name,
                mib(footprint.rss_kib),
                mib(footprint.pss_kib)
            )?;
        }
        self.fmt_bars(f)
    }
}

impl Report {
    fn fmt_bars(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(mote) = self.monitors.first() else {
            return Ok(());
        };
        let verdict = |reached| if reached { "reached" } else { "missed" };
        let p50 = mote.first_instruction.p50_ms;
        let rss = mote.footprint.rss_kib;
        writeln!(
            f,
            "\n{}: first instruction p50 at most {FIRST_INSTRUCTION_BAR_MS} ms: {}",
            mote.name,
            verdict(p50 <= FIRST_INSTRUCTION_BAR_MS)
        )?;
        writeln!(
            f,
            "{}: RSS beyond the guest's at most {} MiB: {}",
            mote.name,
            RSS_BAR_KIB >> 10,
            verdict(rss <= RSS_BAR_KIB)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, first_ms: f64, rss_kib: u64) -> Measured {
        let distribution = |ms| Distribution::of(vec![ms]).unwrap();
        Measured {
            name: name.to_owned(),
            version: "1".to_owned(),
            first_instruction: distribution(first_ms),
            whole_process: distribution(2.0 * first_ms),
            footprint: Footprint {
                rss_kib,
                pss_kib: rss_kib / 2,
                guest_rss_kib: 40,
            },
        }
    }

    #[test]
    fn the_table_has_every_monitor_and_the_verdicts_on_the_first() {
        let report = Report::new(
            1,
            vec![
                measured("mote-vmm", 2.4, 2049),
                measured("peer", 40.0, 9000),
            ],
        );
        let text = report.to_string();
        assert_eq!(text.matches("peer").count(), 3, "{text}");
        assert!(text.contains("at most 2.5 ms: reached"), "{text}");
        assert!(text.contains("at most 2 MiB: missed"), "{text}");
    }

    #[test]
    fn json_has_units_in_its_names() {
        let report = Report::new(1, vec![measured("mote-vmm", 4.0, 100)]);
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        let monitor = &json["monitors"][0];
        assert_eq!(monitor["first_instruction"]["p50_ms"], 4.0);
        assert_eq!(monitor["whole_process"]["sorted_ms"][0], 8.0);
        assert_eq!(monitor["footprint"]["rss_kib"], 100);
        assert_eq!(json["setting"]["guest_memory_mib"], 128);
    }
}
