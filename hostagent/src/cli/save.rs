//! `mote save`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use hostagent::image::name::ImageName;
use hostagent::image::reference::StoredReference;
use hostagent::image::save::{ArchiveTarget, DirectoryTarget, SaveError, Saved, save};
use hostagent::store::{ImportError, Store, limits};
use serde_json::json;

use super::documents::Needed;
use super::format::{FORMAT_HELP, Format};
use super::interrupt;
use super::output::print;
use super::progress::TerminalProgress;
use super::whole;

const EXAMPLES: &str = "\
Examples:
  mote save -o demo.tar demo:v1     An archive for `docker load`, `skopeo`, `mote load`
  mote save demo:v1 | docker load   The same into a pipe
  mote save -o oci:images demo:v1   An OCI image layout in the directory images

Layers and configuration are those that were loaded, byte for byte; layers are not
compressed. What -o names is replaced once all is written: a file, or of a layout that is
in the directory the images, while blobs stay. With -o it says what it saved, --format how: as json or by a template the
documents {id, names, layers}. Without -o it prints the archive and nothing else.";

/// Save images to an archive, or to an OCI layout.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SaveArgs {
    /// Write to this file, or with oci:DIR a layout in that directory, instead of to
    /// standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Names, or ids or starts of them.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Saves and says what was saved.
pub fn main(args: &SaveArgs) -> anyhow::Result<ExitCode> {
    if args.output.is_none() && io::stdout().is_terminal() {
        bail!("standard output is a terminal; name a file with -o, or see `mote save --help`");
    }
    interrupt::watch().context("cannot catch signals")?;
    let store = Store::open(&Store::default_root())?.with_limits(limits::of_this_machine()?);
    let store = Arc::new(store);
    let progress = TerminalProgress::new();
    let lease = store.lease()?;
    let images = wanted(&store, &args.images)?;
    // What is removed meanwhile is saved all the same.
    for saved in &images {
        whole::obtain(&store, &saved.image, Needed::Config, &lease, &progress)?;
    }
    let saved = match args.output.as_deref() {
        None => {
            let place = "standard output".to_owned();
            let mut target = ArchiveTarget::new(io::stdout().lock(), place);
            save(&store, &images, &mut target, &progress)
                .and_then(|()| target.finish(|out| out.flush()).map(drop))
        }
        Some(text) => match text.strip_prefix("oci:") {
            Some(directory) => to_directory(&store, &images, Path::new(directory), &progress),
            None => to_file(&store, &images, Path::new(text), &progress),
        },
    };
    match saved {
        Ok(()) => {}
        Err(SaveError::Cancelled) => return Err(ImportError::Cancelled.into()),
        Err(error) => return Err(error.into()),
    }
    drop(progress);
    if args.output.is_some() {
        report(&images, &args.format)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The images that are asked for, each with the names that were; by its id it is saved
/// without one.
fn wanted(store: &Store, texts: &[String]) -> anyhow::Result<Vec<Saved>> {
    let mut images: Vec<Saved> = Vec::new();
    for text in texts {
        let reference: StoredReference = text.parse()?;
        let image = store.find(&reference)?;
        let names: Vec<ImageName> = match &reference {
            StoredReference::Name(name) if image.names.contains(name) => vec![name.clone()],
            _ => Vec::new(),
        };
        match images.iter_mut().find(|saved| saved.image.id == image.id) {
            Some(saved) => {
                saved.names.extend(names);
                saved.names.sort();
                saved.names.dedup();
            }
            None => images.push(Saved { image, names }),
        }
    }
    Ok(images)
}

fn to_directory(
    store: &Store,
    images: &[Saved],
    directory: &Path,
    progress: &TerminalProgress,
) -> Result<(), SaveError> {
    let mut target = DirectoryTarget::create(directory)?;
    save(store, images, &mut target, progress)?;
    target.finish()
}

/// Written aside and renamed: what was there stays until all is well.
fn to_file(
    store: &Store,
    images: &[Saved],
    path: &Path,
    progress: &TerminalProgress,
) -> Result<(), SaveError> {
    let failed = |source| SaveError::Write {
        place: path.display().to_string(),
        source,
    };
    // A pipe, a device: nothing to put in its place.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let out = File::options().write(true).open(path).map_err(failed)?;
        let mut target = ArchiveTarget::new(out, path.display().to_string());
        save(store, images, &mut target, progress)?;
        return target.finish(|_| Ok(())).map(drop);
    }
    let part = part_of(path);
    let written = File::create(&part).map_err(failed).and_then(|file| {
        let mut target = ArchiveTarget::new(file, path.display().to_string());
        save(store, images, &mut target, progress)?;
        target.finish(|file| file.sync_data())?;
        put_in_place(&part, path).map_err(failed)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// Renames, and brings the name to disk.
fn put_in_place(part: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::rename(part, path)?;
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    match File::open(directory.unwrap_or(Path::new("."))) {
        // One that may be written and not read.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    path.with_file_name(name)
}

fn report(images: &[Saved], format: &Format) -> anyhow::Result<()> {
    for saved in images {
        let names: Vec<String> = saved.names.iter().map(ImageName::to_string).collect();
        if let Format::Documents(format) = format {
            format.print(&json!({
                "id": saved.image.id,
                "names": names,
                "layers": saved.image.diff_ids,
            }))?;
            continue;
        }
        if names.is_empty() {
            print(&format!("Saved image ID: {}\n", saved.image.id))?;
        }
        for name in names {
            print(&format!("Saved image: {name}\n"))?;
        }
    }
    Ok(())
}
