//! `mote system` and its commands.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hostagent::store::{Store, Usage};
use serde_json::json;

use super::image::in_use;
use super::output::{Format, print, print_json, size, table};

/// Look after what mote keeps.
#[derive(Debug, Args)]
pub struct SystemArgs {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    Df(DfArgs),
}

/// Tell what the store takes on disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mote system df\n  mote system df --format json | jq .Type")]
pub struct DfArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Does what the subcommand says.
pub fn main(args: &SystemArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        SystemCommand::Df(args) => df(args),
    }
}

fn df(args: &DfArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let usage = store.usage(&in_use(&store)?.into_keys().collect())?;
    let kinds = [
        ("Images", usage.images),
        ("Guest kernels", usage.boot),
        ("Quarantine", usage.quarantine),
    ];
    match args.format {
        Format::Json => {
            for (kind, usage) in kinds {
                print_json(&json!({
                    "Type": kind,
                    "TotalCount": usage.total,
                    "Active": usage.active,
                    "Size": size(usage.bytes),
                    "SizeBytes": usage.bytes,
                    "Reclaimable": reclaimable(&usage),
                    "ReclaimableBytes": usage.reclaimable_bytes,
                }))?;
            }
        }
        Format::Table => {
            let rows = kinds.map(|(kind, usage)| {
                [
                    kind.to_owned(),
                    usage.total.to_string(),
                    usage.active.to_string(),
                    size(usage.bytes),
                    reclaimable(&usage),
                ]
            });
            let headings = ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"];
            print(&table(headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn reclaimable(usage: &Usage) -> String {
    let bytes = usage.reclaimable_bytes;
    match (bytes * 100).checked_div(usage.bytes) {
        Some(percent) => format!("{} ({percent}%)", size(bytes)),
        None => size(bytes),
    }
}
