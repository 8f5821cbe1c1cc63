//! `--timing`: when each phase of a run was reached.

use clap::ValueEnum;
use hostagent::guest::Timeline;
use serde_json::{Map, Value, json};

/// The form of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimingFormat {
    /// A line for each phase.
    Table,
    /// One JSON document.
    Json,
}

/// Prints the phases that were reached to standard error, which the workload no
/// longer uses.
pub fn print(timeline: &Timeline, format: TimingFormat) {
    match format {
        TimingFormat::Table => eprint!("{}", as_table(timeline)),
        TimingFormat::Json => eprintln!("{}", as_json(timeline)),
    }
}

fn as_table(timeline: &Timeline) -> String {
    let mut text = String::new();
    let mut before = 0.0;
    for (name, at) in timeline.phases() {
        let took = at - before;
        text.push_str(&format!("{at:10.1} ms  {name}  (+{took:.1})\n"));
        before = at;
    }
    if let Some(ns) = timeline.kernel_to_init_ns {
        let ms = ns as f64 / 1e6;
        text.push_str(&format!(
            "{ms:10.1} ms  of guest time from its kernel's start to the init\n"
        ));
    }
    if let Some(bytes) = timeline.fetched_bytes_at_exit {
        text.push_str(&format!(
            "{bytes:10} bytes fetched until the workload exited\n"
        ));
    }
    text
}

fn as_json(timeline: &Timeline) -> Value {
    let key = |name: &str| format!("{}_ms", name.to_lowercase().replace(' ', "_"));
    let phases: Map<String, Value> = timeline
        .phases()
        .into_iter()
        .map(|(name, ms)| (key(name), json!(ms)))
        .collect();
    let kernel_to_init = timeline.kernel_to_init_ns.map(|ns| ns as f64 / 1e6);
    json!({
        "timeline": phases,
        "guest_kernel_to_init_ms": kernel_to_init,
        "fetched_bytes": timeline.fetched_bytes_at_exit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_show_the_phases_that_were_reached() {
        let mut timeline = Timeline::start();
        timeline.started_ns = 0;
        timeline.image_ready_ns = Some(2_000_000);
        timeline.vm_process_started_ns = Some(5_500_000);
        assert_eq!(
            as_table(&timeline),
            "       2.0 ms  image ready  (+2.0)\n       5.5 ms  VM process started  (+3.5)\n"
        );
        let json = as_json(&timeline);
        assert_eq!(json["timeline"]["vm_process_started_ms"], 5.5);
        assert_eq!(json["timeline"].as_object().unwrap().len(), 2);
    }
}
