//! `mote node`: this node among its peers.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use hostagent::config_file;
use hostagent::image::digest::Digest;
use hostagent::image::name::ImageName;
use hostagent::image::reference::StoredReference;
use hostagent::peer::config::Settings;
use hostagent::peer::{Cancel, Client, NodeKey, PeerError, Server};
use hostagent::store::{ImportError, Imported, Store, limits};
use hostagent::trust::Policy;
use hostagent::vm_process::printable_lines;
use serde_json::json;

use super::format::{FORMAT_HELP, Format};
use super::interrupt;
use super::output::print;
use super::progress::TerminalProgress;

const EXAMPLES: &str = "\
Examples:
  mote node key                 What peers know this node by
  mote node serve               Give blobs to peers until Ctrl-C
  mote node fetch sha256:4f1a…  Take an image from a peer

/etc/mote/peers.toml, or that in the directory MOTE_CONFIG names, says who the peers are:
  listen = \"10.0.0.1:7431\"
  [[peer]]
  key = \"…\"                     What `mote node key` prints there
  address = \"10.0.0.2:7431\"";

/// How often is looked whether to end.
const POLL: Duration = Duration::from_millis(100);

/// Give images to other nodes, and take them from there.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    Serve(ServeArgs),
    Key(KeyArgs),
    Fetch(FetchArgs),
}

/// Give blobs to the peers in peers.toml, until Ctrl-C.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
}

/// Print what peers know this node by.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
}

/// Take an image from a peer.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// Only say which image it is.
    #[arg(short, long)]
    quiet: bool,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// An image id, NAME@DIGEST, or NAME[:TAG] for peers with `names = true`.
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Does what the subcommand says.
pub fn main(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        NodeCommand::Serve(args) => serve(args),
        NodeCommand::Key(args) => key(args),
        NodeCommand::Fetch(args) => fetch(args),
    }
}

fn key(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let key = NodeKey::of(&store).map_err(PeerError::from)?.public();
    match &args.format {
        Format::Documents(format) => format.print(&json!({"key": key.to_string()}))?,
        Format::Table => print(&format!("{key}\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch().context("cannot catch signals")?;
    let settings = settings()?;
    let store = Store::open(&Store::default_root())?;
    let key = NodeKey::of(&store).map_err(PeerError::from)?;
    let note = |note: &str| eprintln!("mote: {}", printable_lines(note));
    let server = Server::start(store, &settings, &key, Box::new(note))?;
    let address = server.address();
    match &args.format {
        Format::Documents(format) => format.print(&json!({
            "address": address.to_string(),
            "key": server.key().to_string(),
        }))?,
        Format::Table => print(&format!("Listening on {address} as {}\n", server.key()))?,
    }
    while interrupt::arrived().is_none() {
        std::thread::sleep(POLL);
    }
    drop(server);
    Ok(ExitCode::SUCCESS)
}

fn fetch(args: &FetchArgs) -> anyhow::Result<ExitCode> {
    let wanted: StoredReference = args.image.parse()?;
    let policy = Policy::of_this_machine()?;
    match &wanted {
        StoredReference::Id(id) => policy.admits_unnamed(*id)?,
        StoredReference::Name(name) => {
            policy.admits(name)?;
            // A peer has no signatures to show.
            policy.admits_unsigned(name)?;
        }
    }
    interrupt::watch().context("cannot catch signals")?;
    let root = Store::default_root();
    let store = Store::open(&root)?.with_limits(limits::of_this_machine()?);
    let client = Client::of_this_machine(&root)?.map_or_else(|| Err(off()), Ok)?;
    let progress = TerminalProgress::new();
    if args.format.is_table() && !args.quiet {
        let (reference, repository) = match &wanted {
            StoredReference::Id(id) => (id.to_string(), "peers".to_owned()),
            StoredReference::Name(name) => {
                let digest = name.digest().map(|digest| digest.to_string());
                let tag = name.tag().map(str::to_owned);
                let repository = name.familiar_repository().to_owned();
                (digest.or(tag).unwrap_or_default(), repository)
            }
        };
        print(&format!("{reference}: Pulling from {repository}\n"))?;
    }
    let cancel: Cancel = Arc::new(|| interrupt::arrived().is_some());
    let lease = store.lease()?;
    let imported = client
        .fetch_image(&store, &wanted, &lease, &progress, &cancel)
        .map_err(cancelled)
        .with_context(|| format!("cannot fetch {}", args.image))?;
    drop(progress);
    report(&wanted, &imported, args)
}

fn report(
    wanted: &StoredReference,
    imported: &Imported,
    args: &FetchArgs,
) -> anyhow::Result<ExitCode> {
    let image = &imported.image;
    let (name, full) = match wanted {
        StoredReference::Id(id) => (None, id.to_string()),
        StoredReference::Name(name) => {
            let full = name.tagged().or_else(|| name.pinned()).unwrap_or_default();
            (Some(name), full)
        }
    };
    let digest: Digest = name
        .and_then(ImageName::digest)
        .or(image.manifest)
        .unwrap_or(image.id);
    if let Format::Documents(format) = &args.format {
        format.print(&json!({
            "id": image.id,
            "name": name.map(ImageName::to_string),
            "digest": digest,
            "manifest": image.manifest,
            "layers": image.diff_ids,
            "layers_pulled": imported.converted,
            "layers_reused": imported.reused,
            "size_bytes": image.bytes,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.quiet {
        let status = match imported.converted {
            0 => "Image is up to date for",
            _ => "Downloaded newer image for",
        };
        print(&format!(
            "Digest: {digest}\nStatus: {status} {}\n",
            args.image
        ))?;
    }
    print(&format!("{full}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn settings() -> Result<Settings, PeerError> {
    Settings::of_this_machine()?.ok_or_else(off)
}

fn off() -> PeerError {
    PeerError::Off {
        directory: config_file::directory().display().to_string(),
    }
}

/// A request that was given up is an interruption like any other.
fn cancelled(error: PeerError) -> anyhow::Error {
    match error {
        PeerError::Cancelled => ImportError::Cancelled.into(),
        error => error.into(),
    }
}
