//! `mote load`.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use hostagent::image::name::ImageName;
use hostagent::image::oci_layout::OciLayout;
use hostagent::image::progress::Progress;
use hostagent::image::reference::ImageReference;
use hostagent::image::source::SourceImage;
use hostagent::store::{ImportError, Imported, Store, limits};
use hostagent::trust::Policy;
use serde_json::json;

use super::format::{FORMAT_HELP, Format};
use super::interrupt;
use super::output::print;
use super::progress::TerminalProgress;
use super::source::{open_archive, read_archive};

const EXAMPLES: &str = "\
Examples:
  mote load -i demo.tar                     An archive of `docker save`, plain, gzip or zstd
  docker save demo | mote load              The same from a pipe
  mote load oci:images/demo:debian          One image of an OCI layout: becomes demo:debian
  mote load oci:images/demo                 All images of an OCI layout
  mote load docker-archive:all.tar:web:v1   One image of an archive

Every layer is checked against its sha256 digests and converted once; layers that
are there already are used again.";

/// Load images from an archive or an OCI layout.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LoadArgs {
    /// Read this archive instead of standard input (`-` is standard input).
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// oci:DIR[:TAG] or docker-archive:FILE[:NAME].
    #[arg(value_name = "REFERENCE", conflicts_with = "input")]
    reference: Option<String>,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
}

/// Loads and says what was loaded.
pub fn main(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let reference = args
        .reference
        .as_deref()
        .map(|text| text.parse::<ImageReference>())
        .transpose()?;
    if reference.is_none() {
        refuse_terminal(args.input.as_deref())?;
    }
    interrupt::watch().context("cannot catch signals")?;
    let store = Store::open(&Store::default_root())?.with_limits(limits::of_this_machine()?);
    let progress = TerminalProgress::unless(args.quiet);
    let policy = Policy::of_this_machine()?;
    let from = match (&args.reference, &args.input) {
        (Some(reference), _) => reference.clone(),
        (None, Some(file)) if file != Path::new("-") => file.display().to_string(),
        (None, _) => "standard input".to_owned(),
    };
    let attempt = || format!("cannot load {from}");
    let found = match sources(&store, &args, reference, &progress) {
        // What writes the archive was interrupted too, and what there is of it is none.
        Err(_) if progress.cancelled() => return Err(ImportError::Cancelled.into()),
        found => found.with_context(attempt)?,
    };
    // Of a file with one image that is refused, none is loaded.
    for source in &found {
        let admitted = policy.admits_local(source.config_document.digest, &source.names);
        admitted.with_context(attempt)?;
    }
    for source in found {
        let imported = store
            .import_or_forget(&source, &source.names, &store.lease()?, &progress)
            .with_context(attempt)?;
        report(&imported, &args.format)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sources(
    store: &Store,
    args: &LoadArgs,
    reference: Option<ImageReference>,
    progress: &TerminalProgress,
) -> anyhow::Result<Vec<SourceImage>> {
    let images = match reference {
        Some(ImageReference::OciLayout { directory, tag }) => {
            let layout = OciLayout::open(&directory)?;
            match tag {
                Some(tag) => vec![layout.image(Some(&tag))?],
                None => layout.images()?,
            }
        }
        Some(ImageReference::DockerArchive { file, name }) => {
            let archive = open_archive(store, &file, progress)?;
            match name {
                Some(name) => vec![archive.image(Some(&name))?],
                None => archive.images()?,
            }
        }
        Some(ImageReference::Stored(_)) => bail!(
            "{:?} is not a file; write oci:DIR[:TAG] or docker-archive:FILE[:NAME], or give an archive with -i",
            args.reference.as_deref().unwrap_or_default()
        ),
        None => match &args.input {
            Some(path) if path != Path::new("-") => {
                open_archive(store, path, progress)?.images()?
            }
            _ => {
                let input = std::io::stdin().as_fd().try_clone_to_owned();
                let input = File::from(input.context("cannot use standard input")?);
                read_archive(store, input, "standard input".to_owned(), progress)?.images()?
            }
        },
    };
    Ok(images)
}

fn refuse_terminal(input: Option<&Path>) -> anyhow::Result<()> {
    let from_stdin = input.is_none_or(|path| path == Path::new("-"));
    if from_stdin && std::io::stdin().is_terminal() {
        bail!("standard input is a terminal; name an archive with -i, or see `mote load --help`");
    }
    Ok(())
}

fn report(imported: &Imported, format: &Format) -> anyhow::Result<()> {
    let image = &imported.image;
    if let Format::Documents(format) = format {
        let names: Vec<String> = image.names.iter().map(ImageName::to_string).collect();
        return format.print(&json!({
            "id": image.id,
            "names": names,
            "manifest": image.manifest,
            "layers": image.diff_ids,
            "layers_converted": imported.converted,
            "layers_reused": imported.reused,
            "size_bytes": image.bytes,
        }));
    }
    if image.names.is_empty() {
        return print(&format!("Loaded image ID: {}\n", image.id));
    }
    for name in &image.names {
        print(&format!("Loaded image: {name}\n"))?;
    }
    Ok(())
}
