//! `mote pull`, and images that are pulled on the way to something else.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use hostagent::image::digest::Digest;
use hostagent::image::name::ImageName;
use hostagent::image::reference::StoredReference;
use hostagent::image::remote;
use hostagent::image::source::{SourceError, SourceImage};
use hostagent::registry::{Cancel, Client, RegistryError};
use hostagent::store::{ImportError, Imported, Lease, Store, StoreError, limits};
use hostagent::trust::{Policy, Requirement, TrustError};
use serde_json::json;

use super::format::{FORMAT_HELP, Format};
use super::interrupt;
use super::output::print;
use super::progress::TerminalProgress;

const EXAMPLES: &str = "\
Examples:
  mote pull debian                         docker.io/library/debian:latest
  mote pull registry.example/team/app:v1
  mote pull debian@sha256:4f1a…            Exactly that one, whatever its tags are now

Credentials are those of `docker login`. Mirrors and registries without TLS are set in
registries.toml, what an image may cost in limits.toml, and which images are accepted in
policy.toml: in /etc/mote, or in the directory MOTE_CONFIG names.";

/// What this machine runs.
const PLATFORM: &str = "linux/amd64";

/// Pull an image from a registry.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PullArgs {
    /// Only say which image it is.
    #[arg(short, long)]
    quiet: bool,
    /// The platform to choose from an image for several; this machine runs linux/amd64. Of
    /// its variants v1 comes first, then what this processor can run.
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// [HOST[:PORT]/]PATH[:TAG][@DIGEST]
    #[arg(value_name = "NAME")]
    name: String,
}

/// An image that is in the store now.
pub struct Pulled {
    /// What was done.
    pub imported: Imported,
    /// What the name led to in its registry.
    pub digest: Digest,
}

/// Pulls and says what was pulled.
pub fn main(args: &PullArgs) -> anyhow::Result<ExitCode> {
    let name: ImageName = args.name.parse()?;
    let platform = args.platform.as_deref().unwrap_or(PLATFORM);
    if platform != PLATFORM {
        bail!(
            "this machine runs {PLATFORM}, not {platform:?}; among the variants of an image it chooses by itself"
        );
    }
    interrupt::watch().context("cannot catch signals")?;
    let store = Store::open(&Store::default_root())?.with_limits(limits::of_this_machine()?);
    let progress = TerminalProgress::unless(args.quiet);
    let say = args.format.is_table() && !args.quiet;
    if say {
        let reference = name.tag().map(str::to_owned);
        let reference = name
            .digest()
            .map_or(reference, |digest| Some(digest.to_string()));
        let reference = reference.unwrap_or_default();
        print(&format!(
            "{reference}: Pulling from {}\n",
            name.familiar_repository()
        ))?;
    }
    let before = led_to(&store, &name)?;
    let pulled = pull(&store, &name, &store.lease()?, &progress)?;
    drop(progress);
    report(&name, before, &pulled, args)
}

/// The image that a name leads to here.
fn led_to(store: &Store, name: &ImageName) -> anyhow::Result<Option<Digest>> {
    let image = match store.find(&StoredReference::Name(name.clone())) {
        Err(StoreError::NoSuchImage { .. } | StoreError::AmbiguousId { .. }) => return Ok(None),
        found => found?,
    };
    // What is found by the start of its id is not called so.
    let is_called = name.digest().is_some() || image.names.contains(name);
    Ok(is_called.then_some(image.id))
}

fn report(
    name: &ImageName,
    before: Option<Digest>,
    pulled: &Pulled,
    args: &PullArgs,
) -> anyhow::Result<ExitCode> {
    let image = &pulled.imported.image;
    if let Format::Documents(format) = &args.format {
        format.print(&json!({
            "id": image.id,
            "name": name.to_string(),
            "digest": pulled.digest,
            "manifest": image.manifest,
            "layers": image.diff_ids,
            "layers_pulled": pulled.imported.converted,
            "layers_reused": pulled.imported.reused,
            "size_bytes": image.bytes,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let full = name.tagged().or_else(|| name.pinned()).unwrap_or_default();
    if !args.quiet {
        let status = match before == Some(image.id) {
            true => "Image is up to date for",
            false => "Downloaded newer image for",
        };
        print(&format!(
            "Digest: {}\nStatus: {status} {name}\n",
            pulled.digest
        ))?;
    }
    print(&format!("{full}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Pulls `name` from its registry; what it needs stays as long as `lease`.
pub fn pull(
    store: &Store,
    name: &ImageName,
    lease: &Lease,
    progress: &TerminalProgress,
) -> anyhow::Result<Pulled> {
    let remote = Remote::find(name)?;
    let digest = remote.digest;
    let imported = remote.import(store, lease, progress)?;
    Ok(Pulled { imported, digest })
}

/// An image in its registry: found, its documents verified, its layers not yet read.
pub struct Remote {
    /// The client it was found with.
    pub client: Arc<Client>,
    /// The image.
    pub source: SourceImage,
    /// What its name led to.
    pub digest: Digest,
    policy: Policy,
    name: ImageName,
}

impl Remote {
    /// Asks the registry, if the policy of this machine admits the name, and whether it
    /// accepts the image.
    pub fn find(name: &ImageName) -> anyhow::Result<Self> {
        let policy = Policy::of_this_machine()?;
        policy.admits(name)?;
        let client = Arc::new(Client::of_this_machine()?);
        let cancel = cancel();
        let finding = || -> Result<_, SourceError> {
            let resolved = remote::resolve(&client, name, &cancel)?;
            let source = remote::image(&client, &resolved, &cancel)?;
            Ok((resolved.document.digest, source))
        };
        let found = finding().map_err(cancelled);
        let (digest, source) = found.with_context(|| format!("cannot pull {name}"))?;
        let manifest = source.manifest.as_ref().map(|manifest| manifest.digest);
        let mut digests = vec![digest];
        digests.extend(manifest.filter(|manifest| *manifest != digest));
        match policy.check(&client, name, &digests, &*cancel) {
            Err(TrustError::Cancelled) => return Err(ImportError::Cancelled.into()),
            verdict => verdict.with_context(|| format!("cannot pull {name}"))?,
        };
        Ok(Self {
            client,
            source,
            digest,
            policy,
            name: name.clone(),
        })
    }

    /// Whether what stands beside the image in converted form may be used for it, and why
    /// not. Neither the image's digest nor a signature of the image covers it: whoever
    /// asks for either gets it only if it is signed itself. It has no tag, and names the
    /// image it is of by digest: its signature need not say how that was asked for.
    pub fn accepts_converted(&self, artifact: Digest) -> Result<(), String> {
        match self
            .policy
            .admits(&self.name)
            .map_err(|error| error.to_string())?
        {
            Requirement::Nothing if self.name.digest().is_none() => Ok(()),
            Requirement::Nothing | Requirement::Digest(_) => {
                Err("the image was asked for by its digest, which does not cover it".to_owned())
            }
            Requirement::Signature(_) => {
                let cancel = cancel();
                let name = self.name.with_digest(artifact);
                let checked = self
                    .policy
                    .check(&self.client, &name, &[artifact], &*cancel);
                checked.map(drop).map_err(|error| error.to_string())
            }
        }
    }

    /// Downloads and converts it.
    pub fn import(
        &self,
        store: &Store,
        lease: &Lease,
        progress: &TerminalProgress,
    ) -> anyhow::Result<Imported> {
        let imported = store.import_or_forget(&self.source, &self.source.names, lease, progress);
        imported.with_context(|| format!("cannot pull {}", self.name))
    }
}

/// Ctrl-C and its like, for the client of registries.
pub fn cancel() -> Cancel {
    Arc::new(|| interrupt::arrived().is_some())
}

/// A request that was given up is an interruption like any other.
fn cancelled(error: SourceError) -> anyhow::Error {
    match error {
        SourceError::Registry(error) if matches!(*error, RegistryError::Cancelled) => {
            ImportError::Cancelled.into()
        }
        error => error.into(),
    }
}
