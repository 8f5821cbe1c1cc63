//! `mote images`.

use std::process::ExitCode;

use clap::Args;
use hostagent::image::name::ImageName;
use hostagent::store::{Store, StoredImage};
use jiff::Timestamp;
use serde_json::json;

use super::output::{Format, ago, print, print_json, size, table};

/// What stands for a name an image does not have, as in Docker.
const NONE: &str = "<none>";

/// List the images that have been loaded.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mote images\n  mote images --format json   One JSON document for each name"
)]
pub struct ImagesArgs {
    /// How to print them.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Prints one row for each name, and one for each image without a name.
pub fn main(args: &ImagesArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let images = store.images()?;
    let rows = images.iter().flat_map(|image| {
        let names: Vec<Option<&ImageName>> = match &image.names[..] {
            [] => vec![None],
            names => names.iter().map(Some).collect(),
        };
        names.into_iter().map(move |name| (image, name))
    });
    match args.format {
        Format::Json => {
            for (image, name) in rows {
                print_json(&as_json(image, name))?;
            }
        }
        Format::Table => {
            let now = Timestamp::now();
            let rows: Vec<_> = rows
                .map(|(image, name)| {
                    [
                        repository(name).to_owned(),
                        tag(name).to_owned(),
                        image.id.short(),
                        created(image).map_or_else(|| "N/A".to_owned(), |then| ago(then, now)),
                        size(image.bytes),
                    ]
                })
                .collect();
            print(&table(
                ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"],
                &rows,
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The keys of `docker images --format json`, and exact values beside them.
fn as_json(image: &StoredImage, name: Option<&ImageName>) -> serde_json::Value {
    json!({
        "Repository": repository(name),
        "Tag": tag(name),
        "ID": image.id,
        "Digest": image.manifest,
        "CreatedAt": image.created,
        "Size": size(image.bytes),
        "SizeBytes": image.bytes,
        "Layers": image.diff_ids,
        "LoadedUnixSeconds": image.loaded_unix_seconds,
    })
}

fn repository(name: Option<&ImageName>) -> &str {
    name.map_or(NONE, ImageName::familiar_repository)
}

fn tag(name: Option<&ImageName>) -> &str {
    name.and_then(ImageName::tag).unwrap_or(NONE)
}

fn created(image: &StoredImage) -> Option<Timestamp> {
    image.created.as_deref()?.parse().ok()
}
