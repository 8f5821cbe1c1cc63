//! `mote store` and its commands.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use hostagent::image::name::ImageName;
use hostagent::store::{ImportError, Report, Store, StoredImage};
use serde_json::json;

use super::interrupt;
use super::output::{Format, print, print_json, size};
use super::progress::TerminalProgress;

const EXAMPLES: &str = "\
Examples:
  mote store verify
  mote store verify --format json | jq .broken

Exits with 0 if all is whole now, and with 1 if an image must be loaded again. What is
wrong is kept aside until `mote image prune`.";

/// Look after the content store.
#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    Verify(VerifyArgs),
}

/// Read everything that is stored, and take out of use what is not as it should be.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArgs {
    /// How to print what was found.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Does what the subcommand says.
pub fn main(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        StoreCommand::Verify(args) => verify(args),
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch().context("cannot catch signals")?;
    let store = Store::open(&Store::default_root())?;
    let progress = TerminalProgress::new();
    let Some(report) = store.verify_all(&progress)? else {
        return Err(ImportError::Cancelled.into());
    };
    drop(progress);
    match args.format {
        Format::Json => print_json(&as_json(&report))?,
        Format::Table => print(&as_text(&report))?,
    }
    Ok(match report.broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn as_json(report: &Report) -> serde_json::Value {
    let wrong = report.wrong.iter();
    let broken = report.broken.iter();
    json!({
        "blobs": report.verified.blobs,
        "bytes": report.verified.bytes,
        "wrong": wrong
            .map(|wrong| json!({"what": wrong.what, "problem": wrong.problem}))
            .collect::<Vec<_>>(),
        "merged_again": report.merged,
        "broken": broken
            .map(|(image, error)| json!({
                "id": image.id,
                "names": image.names.iter().map(ImageName::to_string).collect::<Vec<_>>(),
                "problem": error.to_string(),
            }))
            .collect::<Vec<_>>(),
    })
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    for wrong in &report.wrong {
        text.push_str(&format!("Quarantined: {wrong}\n"));
    }
    if report.merged > 0 {
        text.push_str(&format!("Merged again: {}\n", report.merged));
    }
    for (image, error) in &report.broken {
        text.push_str(&format!("Broken: {}: {error}\n", called(image)));
    }
    text.push_str(&format!(
        "Whole: {} blobs, {}\n",
        report.verified.blobs,
        size(report.verified.bytes)
    ));
    text
}

fn called(image: &StoredImage) -> String {
    let names: Vec<String> = image.names.iter().map(ImageName::to_string).collect();
    match names.is_empty() {
        true => image.id.short(),
        false => names.join(", "),
    }
}
