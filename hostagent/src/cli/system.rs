//! `mote system` and its commands.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hostagent::store::{Store, Usage};
use serde_json::json;

use super::format::{FORMAT_HELP, Format};
use super::image::in_use;
use super::output::{print, size, table};

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
    /// Tell what each image takes, alone and with others.
    #[arg(short, long)]
    verbose: bool,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
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
    if args.verbose {
        return images(&store, &args.format);
    }
    let usage = store.usage(&in_use(&store)?.into_keys().collect())?;
    let kinds = [
        ("Images", usage.images),
        ("Guest kernels", usage.boot),
        ("Quarantine", usage.quarantine),
    ];
    match &args.format {
        Format::Documents(format) => format.print_all(kinds.map(|(kind, usage)| {
            json!({
                "Type": kind,
                "TotalCount": usage.total,
                "Active": usage.active,
                "Size": size(usage.bytes),
                "SizeBytes": usage.bytes,
                "Reclaimable": reclaimable(&usage),
                "ReclaimableBytes": usage.reclaimable_bytes,
            })
        }))?,
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

fn images(store: &Store, format: &Format) -> anyhow::Result<ExitCode> {
    let used = in_use(store)?;
    let (mut rows, mut documents) = (Vec::new(), Vec::new());
    for usage in store.usage_of_images()? {
        let image = &usage.image;
        let machines = used.get(&image.id).copied().unwrap_or(0);
        let name = image.names.first();
        let repository = name.map_or("<none>", |name| name.familiar_repository());
        let tag = name.and_then(|name| name.tag()).unwrap_or("<none>");
        let bytes = usage.shared_bytes + usage.unique_bytes;
        if !format.is_table() {
            documents.push(json!({
                "ID": image.id,
                "Repository": repository,
                "Tag": tag,
                "SizeBytes": bytes,
                "SharedSizeBytes": usage.shared_bytes,
                "UniqueSizeBytes": usage.unique_bytes,
                "MicroVMs": machines,
            }));
            continue;
        }
        rows.push([
            repository.to_owned(),
            tag.to_owned(),
            image.id.short(),
            size(bytes),
            size(usage.shared_bytes),
            size(usage.unique_bytes),
            machines.to_string(),
        ]);
    }
    match format {
        Format::Documents(format) => format.print_all(documents)?,
        Format::Table => {
            let headings = [
                "REPOSITORY",
                "TAG",
                "IMAGE ID",
                "SIZE",
                "SHARED SIZE",
                "UNIQUE SIZE",
                "MICROVMS",
            ];
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
