//! `mote rmi` and `mote tag`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use hostagent::image::digest::Digest;
use hostagent::image::name::ImageName;
use hostagent::image::reference::StoredReference;
use hostagent::store::{Removed, Store, StoredImage};
use serde_json::json;

use super::format::{FORMAT_HELP, Format};
use super::output::print;
use super::{EXIT_FAILURE, tell};

const RMI_EXAMPLES: &str = "\
Examples:
  mote rmi demo:v1          Takes the name away, and removes the image with its last name
  mote rmi 4f1a0c2b9d3e     Removes it by its id
  mote rmi -f 4f1a0c2b9d3e  Even if it has several names

An image that a microVM runs is not removed. Layers that other images have stay. Of several
images those that can be removed are, and mote exits with 125 if one could not be.";

const TAG_EXAMPLES: &str = "\
Examples:
  mote tag demo:v1 registry.example/demo:stable

Prints nothing as a table; as json or by a template the document {id, name}.";

/// Remove images.
#[derive(Debug, Args)]
#[command(after_help = RMI_EXAMPLES)]
pub struct RmiArgs {
    /// Remove an image by its id even if it has several names; no error for one that is
    /// not there.
    #[arg(short, long)]
    force: bool,
    /// Keep the layers that nobody needs any more, until something else is removed.
    #[arg(long)]
    no_prune: bool,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Names, or ids or starts of them.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Give an image one more name.
#[derive(Debug, Args)]
#[command(after_help = TAG_EXAMPLES)]
pub struct TagArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// A name, or an id or the start of one.
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The name it gets.
    #[arg(value_name = "NAME")]
    name: String,
}

/// What was done to an image.
#[derive(Debug)]
pub enum Change {
    /// It lost this name.
    Untagged(ImageName),
    /// It is gone.
    Deleted(Digest),
}

impl Change {
    /// What was done when this was removed of an image.
    pub fn all(id: Digest, removed: Removed) -> Vec<Self> {
        let names = removed.names.into_iter().map(Self::Untagged);
        let image = removed.image.then_some(Self::Deleted(id));
        names.chain(image).collect()
    }
}

/// Prints changes as Docker does.
pub fn print_changes(changes: &[Change], format: &Format) -> anyhow::Result<()> {
    match format {
        Format::Table => changes.iter().try_for_each(|change| match change {
            Change::Untagged(name) => print(&format!("Untagged: {name}\n")),
            Change::Deleted(id) => print(&format!("Deleted: {id}\n")),
        }),
        Format::Documents(format) => format.print_all(changes.iter().map(|change| match change {
            Change::Untagged(name) => json!({"Untagged": name.to_string(), "Deleted": null}),
            Change::Deleted(id) => json!({"Untagged": null, "Deleted": id}),
        })),
    }
}

/// Removes. What cannot be removed is told, and keeps nothing else from being removed.
pub fn rmi(args: &RmiArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let mut code = ExitCode::SUCCESS;
    for text in &args.images {
        if let Err(error) = remove(&store, text, args) {
            tell(&error);
            code = ExitCode::from(EXIT_FAILURE);
        }
    }
    if !args.no_prune {
        store.collect()?;
    }
    Ok(code)
}

fn remove(store: &Store, text: &str, args: &RmiArgs) -> anyhow::Result<()> {
    let reference: StoredReference = text.parse()?;
    let image = match store.find(&reference) {
        Err(hostagent::store::StoreError::NoSuchImage { .. }) if args.force => return Ok(()),
        found => found?,
    };
    // A name takes away itself; an id takes away all names.
    let named = match &reference {
        StoredReference::Name(name) => image.names.iter().find(|known| *known == name),
        StoredReference::Id(_) => None,
    };
    let names: Vec<ImageName> = match named {
        Some(name) => vec![name.clone()],
        None if image.names.len() > 1 && !args.force => bail!(
            "image {} has several names: {}; remove them by name, or all with --force",
            image.id.short(),
            listed(&image.names)
        ),
        None => image.names.clone(),
    };
    if names.len() == image.names.len() {
        refuse_in_use(store, &image)?;
    }
    // The image goes with its last name.
    let removed = store.remove(image.id, &names)?;
    print_changes(&Change::all(image.id, removed), &args.format)
}

fn refuse_in_use(store: &Store, image: &StoredImage) -> anyhow::Result<()> {
    let machines = store.running().list().context("cannot read what runs")?;
    let user = machines
        .iter()
        .find(|machine| machine.image_id == Some(image.id));
    match user {
        Some(machine) => bail!(
            "image {} is in use by the microVM {}; stop it first",
            image.id.short(),
            machine
                .name
                .as_deref()
                .unwrap_or(&machine.id[..machine.id.len().min(12)])
        ),
        None => Ok(()),
    }
}

fn listed(names: &[ImageName]) -> String {
    let names: Vec<String> = names.iter().map(ImageName::to_string).collect();
    names.join(", ")
}

/// Names.
pub fn tag(args: &TagArgs) -> anyhow::Result<ExitCode> {
    let name: ImageName = args.name.parse()?;
    if name.digest().is_some() {
        bail!(
            "{:?} has a digest, which is not for a user to give",
            args.name
        );
    }
    let store = Store::open(&Store::default_root())?;
    let image = store.find(&args.image.parse()?)?;
    if !store.tag(image.id, &name)? {
        bail!("image {} was removed meanwhile", image.id.short());
    }
    if let Format::Documents(format) = &args.format {
        format.print(&json!({"id": image.id, "name": name.to_string()}))?;
    }
    Ok(ExitCode::SUCCESS)
}
