//! `mote inspect`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use hostagent::running::RunningMachine;
use hostagent::store::Store;
use hostagent::vm_process::confinement::{self, Confinement};
use serde_json::json;

use super::format::{FORMAT_HELP, Format};
use super::output::{print, table};

/// Tell all about a microVM that runs, its confinement included.
///
/// What its VMM can and cannot do is read back from the kernel, not from what was
/// asked for. Only the row about Landlock, of which the kernel does not tell, is what
/// the VMM reported before the first instruction of its guest.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mote inspect web\n  mote inspect 3f2a --format json | jq .confinement.threads"
)]
pub struct InspectArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
    /// Its name, or its id or the start of it.
    #[arg(value_name = "NAME")]
    name: String,
}

/// Prints what is known.
pub fn main(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&Store::default_root())?;
    let machine = store.running().find(&args.name)?;
    let pid = machine
        .vmm_pid
        .with_context(|| format!("{} has no VMM yet; try again in a moment", args.name))?;
    let confinement = confinement::read(pid)
        .with_context(|| format!("cannot read the confinement of process {pid} from /proc"))?;
    match &args.format {
        Format::Documents(format) => {
            format.print(&json!({ "machine": machine, "confinement": confinement }))?;
        }
        Format::Table => print(&as_table(&machine, &confinement))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_table(machine: &RunningMachine, confinement: &Confinement) -> String {
    let yes_no = |yes: bool| if yes { "yes" } else { "NO" }.to_owned();
    let row = |name: &str, value: String| [name.to_owned(), value];
    let shared: Vec<&str> = confinement
        .own_namespaces
        .iter()
        .filter(|(_, own)| !**own)
        .map(|(name, _)| *name)
        .collect();
    let capabilities: Vec<String> = confinement
        .capabilities
        .iter()
        .filter(|(_, mask)| mask.chars().any(|digit| digit != '0'))
        .map(|(name, mask)| format!("{name} {mask}"))
        .collect();
    let or_none = |text: String| {
        if text.is_empty() {
            "none".to_owned()
        } else {
            text
        }
    };
    let root = &confinement.root;
    let mut rows = vec![
        row("id", machine.id.clone()),
        row("name", machine.name.clone().unwrap_or_default()),
        row("image", machine.image.clone()),
        row(
            "CPU template",
            or_none(machine.cpu_template.clone().unwrap_or_default()),
        ),
        row("VMM", format!("process {}", machine.vmm_pid.unwrap_or(0))),
        row(
            "user, group",
            format!("{}, {}", confinement.uid, confinement.gid),
        ),
        row(
            "supplementary groups",
            or_none(join(confinement.groups.iter())),
        ),
        row("capabilities", or_none(capabilities.join(", "))),
        row("no new privileges", yes_no(confinement.no_new_privs)),
        row("undumpable", yes_no(!confinement.dumpable)),
        row(
            "own namespaces",
            join(
                confinement
                    .own_namespaces
                    .iter()
                    .filter(|(_, own)| **own)
                    .map(|(name, _)| name),
            ),
        ),
        row("shared namespaces", or_none(shared.join(", "))),
        row(
            "root",
            format!(
                "{} files, {}, {} mounted",
                root.entries,
                if root.read_only {
                    "read-only"
                } else {
                    "WRITABLE"
                },
                root.mounts,
            ),
        ),
        row(
            "Landlock",
            machine.landlock.map_or("unknown".to_owned(), |landlock| {
                format!("{landlock:?}").to_lowercase()
            }),
        ),
        row(
            "cgroup",
            confinement.cgroup.path.clone().unwrap_or("none".to_owned()),
        ),
    ];
    for (name, value) in &confinement.cgroup.limits {
        rows.push(row(&format!("  {name}"), value.clone()));
    }
    for thread in &confinement.threads {
        let filters = match thread.filters {
            0 => "NO system call filter".to_owned(),
            1 => "1 system call filter".to_owned(),
            n => format!("{n} system call filters"),
        };
        rows.push(row(&format!("thread {}", thread.name), filters));
    }
    for (name, value) in &confinement.limits {
        if value != "unlimited" {
            rows.push(row(
                &format!("limit: {}", name.to_lowercase()),
                value.clone(),
            ));
        }
    }
    for (number, file) in &confinement.descriptors {
        rows.push(row(&format!("descriptor {number}"), file.clone()));
    }
    table(["WHAT", "VALUE"], &rows)
}

fn join<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let texts: Vec<String> = items.map(|item| item.to_string()).collect();
    texts.join(", ")
}
