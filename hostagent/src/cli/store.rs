//! `mote store` and its commands.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use hostagent::assets::Assets;
use hostagent::image::name::ImageName;
use hostagent::image::progress::Progress;
use hostagent::peer::{self, PeerError};
use hostagent::store::{
    BlobIdentity, BootFile, Fate, ImportError, Lease, Report, Store, StoreError, StoredImage,
};
use serde_json::json;

use super::format::{FORMAT_HELP, Format};
use super::interrupt;
use super::output::{print, size};
use super::progress::TerminalProgress;
use super::pull::{cancel, pull};

const EXAMPLES: &str = "\
Examples:
  mote store verify
  mote store verify --format json | jq .broken

What was pulled from a registry is pulled again, or fetched from peers; the guests' kernel
and initrd are taken in again from where mote is installed. Exits with 0 if all is whole now,
and with 1 if images must be loaded again, or mote installed again. What is wrong is kept
aside until `mote image prune`.";

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
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Do not pull again what is broken and has a registry.
    #[arg(long)]
    no_fetch: bool,
}

/// Does what the subcommand says.
pub fn main(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        StoreCommand::Verify(args) => verify(args),
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    interrupt::watch().context("cannot catch signals")?;
    let limits = hostagent::store::limits::of_this_machine()?;
    let store = Store::open(&Store::default_root())?.with_limits(limits);
    let progress = TerminalProgress::new();
    let Some(mut report) = store.verify_all(&progress)? else {
        return Err(ImportError::Cancelled.into());
    };
    // What was found is told all the same.
    let boot = mend_boot(&store).unwrap_or_else(|error| Boot {
        taken: Vec::new(),
        broken: vec![("the guests' kernel and initrd", error)],
    });
    let mut mended = Vec::new();
    if !args.no_fetch && !report.broken.is_empty() {
        // Peers first: what they have needs no conversion.
        if let Some(peers) = peer::Client::of_this_machine(store.root())? {
            let whole = peer::mend(&peers, &store, &mut report, &progress, &cancel());
            let whole = match whole {
                Err(PeerError::Cancelled) => return Err(ImportError::Cancelled.into()),
                whole => whole?,
            };
            for (image, error) in whole.failed {
                progress.note(&format!("{}: peers: {error}", called(&image)));
            }
            mended.extend(whole.images);
        }
        let broken = std::mem::take(&mut report.broken);
        for (image, problem) in broken {
            match mend(&store, &image, &progress) {
                Ok(true) => mended.push(image),
                Ok(false) => report.broken.push((image, problem)),
                Err(error)
                    if error
                        .downcast_ref::<ImportError>()
                        .is_some_and(is_cancelled) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    progress.note(&format!("{}: {error:#}", called(&image)));
                    report.broken.push((image, problem));
                }
            }
        }
    }
    drop(progress);
    match &args.format {
        Format::Documents(format) => format.print(&as_json(&report, &mended, &boot))?,
        Format::Table => print(&as_text(&report, &mended, &boot))?,
    }
    let has_lost = report.wrong.iter().any(|wrong| wrong.fate == Fate::Lost);
    let is_whole = report.broken.is_empty() && boot.broken.is_empty() && !has_lost;
    Ok(match is_whole {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn is_cancelled(error: &ImportError) -> bool {
    matches!(error, ImportError::Cancelled)
}

/// Pulls an image again from where it was pulled; false if it was not.
fn mend(store: &Store, image: &StoredImage, progress: &TerminalProgress) -> anyhow::Result<bool> {
    let mut failed = None;
    for source in &image.sources {
        match pull(store, source, &store.lease()?, progress) {
            Ok(_) => return Ok(true),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(false), Err)
}

/// What became of the guests' kernel and initrd.
#[derive(Default)]
struct Boot {
    /// The files they were taken in from again.
    taken: Vec<String>,
    /// What is damaged still, and why.
    broken: Vec<(&'static str, anyhow::Error)>,
}

/// Takes the guests' kernel and initrd in again if they are not there any more, and this
/// mote is installed with the same ones.
fn mend_boot(store: &Store) -> anyhow::Result<Boot> {
    let mut boot = Boot::default();
    let Some(record) = store.boot_record()? else {
        return Ok(boot);
    };
    let assets = Assets::locate();
    let lease = store.lease()?;
    for (what, identity, file) in [
        ("the guests' kernel", record.kernel, assets.kernel_file()),
        ("the guests' initrd", record.initrd, assets.initrd_file()),
    ] {
        if !store.is_damaged(identity)? {
            continue;
        }
        match file
            .map_err(anyhow::Error::from)
            .and_then(|file| take_in(store, file, identity, &lease))
        {
            Ok(file) => boot.taken.push(file),
            Err(error) => boot.broken.push((what, error)),
        }
    }
    Ok(boot)
}

/// Takes in a file if it is this blob; returns what it is called.
fn take_in(
    store: &Store,
    mut file: BootFile,
    identity: BlobIdentity,
    lease: &Lease,
) -> anyhow::Result<String> {
    let path = file.what.clone();
    let is_another = || {
        anyhow!(
            "{path} is another than the one that is damaged; the next `mote run` takes in that one, or install the mote again that had the other"
        )
    };
    if file.identity.is_some_and(|found| found != identity) {
        return Err(is_another());
    }
    let says_itself = file.identity.replace(identity).is_some();
    match store.obtain_boot(&mut file, lease) {
        Err(StoreError::OtherFile { .. }) if !says_itself => Err(is_another()),
        obtained => {
            obtained.with_context(|| {
                format!("{path} cannot be taken in; install mote again if it stays so")
            })?;
            Ok(path)
        }
    }
}

fn as_json(report: &Report, mended: &[StoredImage], boot: &Boot) -> serde_json::Value {
    let wrong = report.wrong.iter();
    let broken = report.broken.iter();
    json!({
        "blobs": report.verified.blobs,
        "bytes": report.verified.bytes,
        "wrong": wrong
            .map(|wrong| json!({
                "what": wrong.what,
                "problem": wrong.problem,
                "fate": match wrong.fate {
                    Fate::Quarantined => "quarantined",
                    Fate::Mended => "mended",
                    Fate::LeftAlone => "left_alone",
                    Fate::Lost => "lost",
                },
            }))
            .collect::<Vec<_>>(),
        "merged_again": report.merged,
        "taken_in_again": boot.taken,
        "boot_broken": boot
            .broken
            .iter()
            .map(|(what, error)| json!({"what": what, "problem": format!("{error:#}")}))
            .collect::<Vec<_>>(),
        "fetched_again": mended.iter().map(called).collect::<Vec<_>>(),
        "broken": broken
            .map(|(image, error)| json!({
                "id": image.id,
                "names": image.names.iter().map(ImageName::to_string).collect::<Vec<_>>(),
                "problem": error.to_string(),
            }))
            .collect::<Vec<_>>(),
    })
}

fn as_text(report: &Report, mended: &[StoredImage], boot: &Boot) -> String {
    let mut text = String::new();
    for wrong in &report.wrong {
        text.push_str(&format!("{wrong}\n"));
    }
    if report.merged > 0 {
        text.push_str(&format!("Merged again: {}\n", report.merged));
    }
    for file in &boot.taken {
        text.push_str(&format!("Taken in again: {file}\n"));
    }
    for image in mended {
        text.push_str(&format!("Fetched again: {}\n", called(image)));
    }
    for (image, error) in &report.broken {
        text.push_str(&format!("Broken: {}: {error}\n", called(image)));
    }
    for (what, error) in &boot.broken {
        text.push_str(&format!("Broken: {what}: {error:#}\n"));
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
