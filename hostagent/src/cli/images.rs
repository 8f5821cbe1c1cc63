//! `mote images`.

use std::process::ExitCode;

use clap::Args;
use hostagent::image::name::ImageName;
use hostagent::store::{Store, StoredImage};
use jiff::Timestamp;
use serde_json::json;

use super::filter::Filters;
use super::format::{FORMAT_HELP, Format};
use super::output::{print, since, size, table};

/// What stands for a name an image does not have, as in Docker.
const NONE: &str = "<none>";

const EXAMPLES: &str = "\
Examples:
  mote images
  mote images --digests 'team/*'          Of names that match, with the digests of manifests
  mote images -q --filter dangling=true   Ids of images without a name
  mote images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
  mote images --format json               One JSON document for each name

Filters: reference=PATTERN, dangling=true|false, before=IMAGE, since=IMAGE, label=KEY[=VALUE].
In patterns * and ? stand for any characters but a slash. Images are before or since others
by when they were built, or by when they came here if they do not say it.";

/// List the images that have been loaded.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImagesArgs {
    /// All images, those included that only others are built on, of which there are none
    /// here.
    #[arg(short, long)]
    all: bool,
    /// Show the digests of manifests.
    #[arg(long)]
    digests: bool,
    /// Only images of which this holds; see below.
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Do not shorten ids.
    #[arg(long)]
    no_trunc: bool,
    /// Only print ids.
    #[arg(short, long)]
    quiet: bool,
    /// Only names that match.
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

/// Prints one row for each name, and one for each image without a name.
pub fn main(args: &ImagesArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let mut filters = Filters::of_list(&store, &args.filter)?;
    if let Some(reference) = &args.reference {
        filters.add_reference(reference);
    }
    let mut images = Vec::new();
    for image in store.images()? {
        if filters.admit(&store, &image)? {
            images.push(image);
        }
    }
    let rows = images.iter().flat_map(|image| {
        let names: Vec<Option<&ImageName>> = match &image.names[..] {
            [] => vec![None],
            names => names.iter().map(Some).collect(),
        };
        names.into_iter().map(move |name| (image, name))
    });
    let rows = rows.filter(|(_, name)| filters.admit_name(*name));
    let id = |image: &StoredImage| match args.no_trunc {
        true => image.id.to_string(),
        false => image.id.short(),
    };
    if args.quiet {
        for (image, _) in rows {
            print(&format!("{}\n", id(image)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    match &args.format {
        Format::Documents(format) => {
            let document = |(image, name)| as_json(image, name, id(image), now);
            format.print_all(rows.map(document))?;
        }
        Format::Table => {
            let row = |(image, name): (&StoredImage, Option<&ImageName>)| {
                [
                    repository(name).to_owned(),
                    tag(name).to_owned(),
                    digest(image, name),
                    id(image),
                    since(image.created.as_deref(), now),
                    size(image.bytes),
                ]
            };
            let rows: Vec<_> = rows.map(row).collect();
            let headings = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
            print(&match args.digests {
                true => table(headings, &rows),
                false => {
                    let without = |[a, b, _, c, d, e]: [String; 6]| [a, b, c, d, e];
                    let rows: Vec<_> = rows.into_iter().map(without).collect();
                    let [a, b, _, c, d, e] = headings;
                    table([a, b, c, d, e], &rows)
                }
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the name led to in its registry, or the image's manifest.
fn digest(image: &StoredImage, name: Option<&ImageName>) -> String {
    let mut sources = image.sources.iter();
    let source =
        sources.find(|source| name.is_some_and(|name| name.repository() == source.repository()));
    let digest = source.and_then(ImageName::digest).or(image.manifest);
    digest.map_or_else(|| NONE.to_owned(), |digest| digest.to_string())
}

/// The keys of `docker images --format json`, and exact values beside them.
fn as_json(
    image: &StoredImage,
    name: Option<&ImageName>,
    id: String,
    now: Timestamp,
) -> serde_json::Value {
    json!({
        "Repository": repository(name),
        "Tag": tag(name),
        "ID": id,
        "Digest": digest(image, name),
        "CreatedAt": image.created,
        "CreatedSince": since(image.created.as_deref(), now),
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
