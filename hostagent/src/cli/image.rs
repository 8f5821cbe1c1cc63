//! `mote image` and its commands.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hostagent::image::digest::Digest;
use hostagent::image::name::ImageName;
use hostagent::store::{BlobIdentity, Store, StoredImage};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::filter::Filters;
use super::format::{DocumentFormat, FORMAT_HELP, Format};
use super::output::{print, since, size, table};
use super::rmi::{self, Change, RmiArgs, TagArgs, print_changes};
use super::{images, load, pull, push, save};

/// The longest command that the table of a history shows, in characters.
const MAX_CREATED_BY: usize = 45;

/// What a `Config` has in Docker's documents, whether the image says it or not.
const CONFIG_KEYS: [&str; 10] = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "OnBuild",
];

/// Manage images.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    Inspect(InspectArgs),
    History(HistoryArgs),
    Prune(PruneArgs),
    /// List the images, as `mote images` does.
    Ls(images::ImagesArgs),
    /// Pull an image, as `mote pull` does.
    Pull(pull::PullArgs),
    /// Push an image, as `mote push` does.
    Push(push::PushArgs),
    /// Load images, as `mote load` does.
    Load(load::LoadArgs),
    /// Save images, as `mote save` does.
    Save(save::SaveArgs),
    /// Remove images, as `mote rmi` does.
    Rm(RmiArgs),
    /// Give an image one more name, as `mote tag` does.
    Tag(TagArgs),
}

/// Tell all about images.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mote image inspect demo:v1\n  mote image inspect --format json demo:v1 | jq .Config.Env   One line for each image\n  mote image inspect -f '{{.Id}} {{json .Config.Env}}' demo:v1"
)]
pub struct InspectArgs {
    #[arg(short, long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Names, or ids or starts of them.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Show how an image was made.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mote image history demo:v1\n  mote image history --no-trunc demo:v1"
)]
pub struct HistoryArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Do not shorten ids and commands.
    #[arg(long)]
    no_trunc: bool,
    /// Only print ids.
    #[arg(short, long)]
    quiet: bool,
    /// Sizes and times for people; with `--human=false` in bytes and as RFC 3339 has them.
    #[arg(
        short = 'H',
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    human: bool,
    /// A name, or an id or the start of one.
    #[arg(value_name = "IMAGE")]
    image: String,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  mote image prune                          Images without names, and what was quarantined
  mote image prune -a -f                    All that no microVM runs, without a question
  mote image prune -a --filter until=240h   Of these, those built ten days ago or earlier

Filters: until=TIME (built before; 24h, 2026-11-01T10:00:00Z, or seconds since 1970),
label=KEY[=VALUE], label!=KEY[=VALUE], dangling=true|false (false is --all). With a filter,
what was quarantined stays.";

/// Remove images that have no name, and what nobody needs.
#[derive(Debug, Args)]
#[command(
    after_help = PRUNE_EXAMPLES
)]
pub struct PruneArgs {
    /// Remove all images that no microVM runs.
    #[arg(short, long)]
    all: bool,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
    /// Only images of which this holds; see below.
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
}

/// Does what the subcommand says.
pub fn main(args: ImageArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        ImageCommand::Inspect(args) => inspect(&args),
        ImageCommand::History(args) => history(&args),
        ImageCommand::Prune(args) => prune(&args),
        ImageCommand::Ls(args) => images::main(&args),
        ImageCommand::Pull(args) => pull::main(&args),
        ImageCommand::Push(args) => push::main(&args),
        ImageCommand::Load(args) => load::main(args),
        ImageCommand::Save(args) => save::main(&args),
        ImageCommand::Rm(args) => rmi::rmi(&args),
        ImageCommand::Tag(args) => rmi::tag(&args),
    }
}

fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let documents = args.images.iter().map(|text| {
        let image = store.find(&text.parse()?)?;
        described(&store, &image)
    });
    let documents = documents.collect::<anyhow::Result<Vec<Value>>>()?;
    match &args.format {
        Format::Documents(format) => format.print_all(&documents)?,
        Format::Table => {
            let text = serde_json::to_string_pretty(&documents).context("cannot write JSON")?;
            print(&format!("{text}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The keys of `docker image inspect`, and what the image is in the store.
fn described(store: &Store, image: &StoredImage) -> anyhow::Result<Value> {
    let bytes = store.config_document(image.id)?;
    let config: Value = serde_json::from_slice(&bytes)
        .with_context(|| format!("cannot read the configuration of image {}", image.id))?;
    let parts = store.parts(image)?;
    let field = |name: &str| config.get(name).cloned().unwrap_or_default();
    let repositories: BTreeSet<&str> = image
        .names
        .iter()
        .map(ImageName::familiar_repository)
        .collect();
    let mut digests: Vec<String> = image.sources.iter().map(ImageName::to_string).collect();
    if digests.is_empty() {
        let manifest = image.manifest.iter();
        digests.extend(manifest.flat_map(|manifest| {
            repositories
                .iter()
                .map(move |name| format!("{name}@{manifest}"))
        }));
    }
    let blob = |blob: &BlobIdentity| json!({"Hash": blob.hash, "Size": blob.bytes});
    let layers = parts.layers.iter().map(|layer| {
        json!({
            "DiffId": layer.diff_id,
            "TarSize": layer.tar_bytes,
            "Blob": blob(&layer.blob),
            "Skeleton": blob(&layer.skeleton),
        })
    });
    let mut stored = json!({
        "LoadedUnixSeconds": image.loaded_unix_seconds,
        "Metadata": blob(&parts.metadata),
        "Layers": layers.collect::<Vec<_>>(),
    });
    if let Some((repository, missing)) = &parts.lazy {
        stored["ConvertedBy"] = json!(repository);
        stored["MissingBytes"] = json!(missing);
    }
    Ok(json!({
        "Id": image.id,
        "RepoTags": image.names.iter().map(ImageName::to_string).collect::<Vec<_>>(),
        "RepoDigests": digests,
        "Created": image.created,
        "Author": field("author"),
        "Architecture": field("architecture"),
        "Os": field("os"),
        "Size": image.bytes,
        "Config": with_all_keys(field("config")),
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "Store": stored,
    }))
}

/// An image's `config` with null for what it does not say, so that a template can ask.
fn with_all_keys(config: Value) -> Value {
    let mut fields = match config {
        Value::Object(fields) => fields,
        Value::Null => Map::new(),
        other => return other,
    };
    for key in CONFIG_KEYS {
        fields.entry(key).or_insert(Value::Null);
    }
    fields.into()
}

/// A step of a configuration's `history` (OCI image specification 1.1).
#[derive(Debug, Deserialize)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

fn history(args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    #[derive(Deserialize)]
    struct Document {
        history: Option<Vec<Step>>,
    }
    let store = Store::open(&Store::default_root())?;
    let image = store.find(&args.image.parse()?)?;
    let bytes = store.config_document(image.id)?;
    let document: Document = serde_json::from_slice(&bytes)
        .with_context(|| format!("cannot read the history of image {}", image.id))?;
    let parts = store.parts(&image)?;
    let mut sizes = parts.layers.iter().map(|layer| layer.blob.bytes);
    let mut steps: Vec<(Step, u64)> = Vec::new();
    for step in document.history.unwrap_or_default() {
        let bytes = match step.empty_layer {
            true => 0,
            false => sizes.next().unwrap_or(0),
        };
        steps.push((step, bytes));
    }
    // Layers that the history says nothing of.
    for bytes in sizes {
        let step = Step {
            created: None,
            created_by: None,
            comment: None,
            empty_layer: false,
        };
        steps.push((step, bytes));
    }
    // The latest first; it is what has the image's id.
    let mut id = Some(image.id);
    let now = Timestamp::now();
    let (mut rows, mut documents) = (Vec::new(), Vec::new());
    for (step, bytes) in steps.into_iter().rev() {
        let id = id.take();
        if args.quiet {
            print(&format!("{}\n", shown_id(id, args.no_trunc)))?;
            continue;
        }
        if !args.format.is_table() {
            documents.push(json!({
                "ID": shown_id(id, args.no_trunc),
                "CreatedAt": step.created,
                "CreatedSince": since(step.created.as_deref(), now),
                "CreatedBy": step.created_by,
                "Size": size(bytes),
                "SizeBytes": bytes,
                "Comment": step.comment,
            }));
            continue;
        }
        rows.push(row(&step, id, bytes, now, args));
    }
    match &args.format {
        _ if args.quiet => {}
        Format::Documents(format) => format.print_all(documents)?,
        Format::Table => {
            let headings = ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"];
            print(&table(headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown_id(id: Option<Digest>, whole: bool) -> String {
    match id {
        Some(id) if whole => id.to_string(),
        Some(id) => id.short(),
        None => "<missing>".to_owned(),
    }
}

fn row(
    step: &Step,
    id: Option<Digest>,
    bytes: u64,
    now: Timestamp,
    args: &HistoryArgs,
) -> [String; 5] {
    let created = match (&step.created, args.human) {
        (Some(text), false) => text.clone(),
        (text, _) => since(text.as_deref(), now),
    };
    let created_by = step.created_by.clone().unwrap_or_default();
    let created_by = match created_by.chars().count() > MAX_CREATED_BY && !args.no_trunc {
        true => created_by
            .chars()
            .take(MAX_CREATED_BY - 1)
            .chain(['…'])
            .collect(),
        false => created_by,
    };
    [
        shown_id(id, args.no_trunc),
        created,
        created_by,
        match args.human {
            true => size(bytes),
            false => bytes.to_string(),
        },
        step.comment.clone().unwrap_or_default(),
    ]
}

fn prune(args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let (filters, dangling) = Filters::of_prune(&store, &args.filter)?;
    if args.all && dangling == Some(true) {
        bail!("--all and dangling=true contradict each other; leave one of them away");
    }
    let all = args.all || dangling == Some(false);
    let filtered = !args.filter.is_empty();
    if !args.force && !confirmed(all, filtered)? {
        return Ok(ExitCode::SUCCESS);
    }
    let used = in_use(&store)?;
    let mut changes = Vec::new();
    for image in store.images()? {
        let is_wanted = used.contains_key(&image.id) || !(all || image.names.is_empty());
        if is_wanted || !filters.admit(&store, &image)? {
            continue;
        }
        let removed = store.remove(image.id, &image.names)?;
        changes.extend(Change::all(image.id, removed));
    }
    let collected = store.collect()?;
    // Who asks for some images has not asked for that.
    let emptied = match filtered {
        true => 0,
        false => store.empty_quarantine()?.bytes,
    };
    let bytes = collected.bytes + emptied;
    if args.format.is_table() && !changes.is_empty() {
        print("Deleted Images:\n")?;
    }
    print_changes(&changes, &args.format)?;
    match &args.format {
        // Another document than the others: no template for these fits it.
        Format::Documents(DocumentFormat::Json) => {
            DocumentFormat::Json.print(&json!({"SpaceReclaimed": bytes}))?;
        }
        Format::Documents(_) => {}
        Format::Table => print(&format!("Total reclaimed space: {}\n", size(bytes)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The images that microVMs run, and how many of them.
pub fn in_use(store: &Store) -> anyhow::Result<HashMap<Digest, usize>> {
    let machines = store.running().list().context("cannot read what runs")?;
    let mut used = HashMap::new();
    for id in machines.iter().filter_map(|machine| machine.image_id) {
        *used.entry(id).or_default() += 1;
    }
    Ok(used)
}

fn confirmed(all: bool, filtered: bool) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is no terminal, to ask whether images may be removed; give -f");
    }
    let which = match all {
        true => "all images that no microVM runs",
        false => "all images without a name",
    };
    let those = match filtered {
        true => " of which the filters hold",
        false => "",
    };
    eprint!("This will remove {which}{those}. Are you sure you want to continue? [y/N] ");
    std::io::stderr()
        .flush()
        .context("cannot write to standard error")?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.context("cannot read standard input")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
