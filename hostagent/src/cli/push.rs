//! `mote push`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use hostagent::image::name::ImageName;
use hostagent::image::reference::StoredReference;
use hostagent::lazy::push::{PushError, push};
use hostagent::registry::Client;
use hostagent::store::{ImportError, Store, limits};
use serde_json::json;

use super::documents::Needed;
use super::format::{FORMAT_HELP, Format};
use super::interrupt;
use super::output::{print, size};
use super::progress::TerminalProgress;
use super::pull::cancel;
use super::whole;

const EXAMPLES: &str = "\
Examples:
  mote push registry.example/team/app:v1

The registry gets the image, if it has it not, and beside it what mote has converted it to,
as an artifact that refers to it. A mote that runs the image then starts it before all of it
has arrived. Whoever else pulls the image sees nothing of that.";

/// Store an image in its registry, converted, so that it starts before it has arrived.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PushArgs {
    /// Only say which image it is.
    #[arg(short, long)]
    quiet: bool,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// [HOST[:PORT]/]PATH[:TAG], a name that the image has here.
    #[arg(value_name = "NAME")]
    name: String,
}

/// Pushes and says what was pushed.
pub fn main(args: &PushArgs) -> anyhow::Result<ExitCode> {
    let name: ImageName = args.name.parse()?;
    if name.digest().is_some() {
        bail!("{:?} has a digest; push by a tag", args.name);
    }
    interrupt::watch().context("cannot catch signals")?;
    let store = Store::open(&Store::default_root())?.with_limits(limits::of_this_machine()?);
    let store = Arc::new(store);
    let image = store.find(&StoredReference::Name(name.clone()))?;
    let lease = store.lease()?;
    let progress = TerminalProgress::unless(args.quiet);
    let needed = Needed::ConfigAndManifest;
    whole::obtain(&store, &image, needed, &lease, &progress)?;
    let client = Client::of_this_machine()?;
    let cancel = cancel();
    let pushed = match push(&store, &image, &name, &client, &cancel, &progress) {
        Err(PushError::Cancelled) => return Err(ImportError::Cancelled.into()),
        pushed => pushed.with_context(|| format!("cannot push {name}"))?,
    };
    drop(progress);
    let (count, bytes) = pushed.uploaded;
    if let Format::Documents(format) = &args.format {
        format.print(&json!({
            "name": name.to_string(),
            "id": image.id,
            "digest": pushed.manifest,
            "artifact": pushed.artifact,
            "blobs_uploaded": count,
            "bytes_uploaded": bytes,
            "blobs_there": pushed.there,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.quiet {
        let tag = name.tag().unwrap_or_default();
        print(&format!(
            "The push refers to repository [{}]\n{count} blobs pushed ({}), {} already there\n\
             {tag}: digest: {}\nconverted: digest: {}\n",
            name.repository(),
            size(bytes),
            pushed.there,
            pushed.manifest,
            pushed.artifact,
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!("{}\n", name.tagged().unwrap_or_default()))?;
    Ok(ExitCode::SUCCESS)
}
