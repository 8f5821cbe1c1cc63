//! `mote ps`.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use hostagent::running::RunningMachine;
use hostagent::store::Store;

use super::format::{FORMAT_HELP, Format};
use super::output::{one_line, print, table};
use super::run::SHORT_ID;

/// The longest command that the table shows, in characters.
const MAX_COMMAND: usize = 30;

/// List the microVMs that run.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mote ps\n  mote ps --format json   One JSON document for each microVM"
)]
pub struct PsArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
}

/// Prints one row for each microVM.
pub fn main(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let machines = store.running().list().context("cannot read what runs")?;
    match &args.format {
        Format::Documents(format) => format.print_all(&machines)?,
        Format::Table => {
            let rows: Vec<_> = machines.iter().map(row).collect();
            print(&table(
                ["ID", "IMAGE", "COMMAND", "RUNS FOR", "NAME"],
                &rows,
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(machine: &RunningMachine) -> [String; 5] {
    [
        machine.id.chars().take(SHORT_ID).collect(),
        machine.image.clone(),
        command(&machine.command),
        duration(seconds_since(machine.started_unix_seconds)),
        machine.name.clone().unwrap_or_default(),
    ]
}

fn command(words: &[String]) -> String {
    let text = one_line(&words.join(" "));
    match text.chars().count() {
        0..=MAX_COMMAND => text,
        _ => text.chars().take(MAX_COMMAND - 1).chain(['…']).collect(),
    }
}

fn seconds_since(unix_seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs().saturating_sub(unix_seconds))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut_and_control_characters_left_out() {
        assert_eq!(command(&["a".into(), "\u{1b}[2Jb".into()]), "a [2Jb");
        let long = command(&["x".repeat(100)]);
        assert_eq!(long.chars().count(), MAX_COMMAND);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn durations_have_a_unit_a_person_would_use() {
        let texts = [5, 119, 120, 7200, 200_000].map(duration);
        assert_eq!(texts, ["5 s", "119 s", "2 min", "2 h", "2 days"]);
    }
}
