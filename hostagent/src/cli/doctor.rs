//! `mote doctor`.

use std::process::ExitCode;

use clap::Args;
use hostagent::doctor::{Diagnosis, Host, Status, diagnose};

use super::format::{FORMAT_HELP, Format};
use super::output::{print, table};

/// Tell what this machine can do, and what to do about what it cannot.
#[derive(Debug, Args)]
#[command(
    after_help = "Exits with 0 if microVMs with Linux can run here, else with 1.\n\n\
                  Examples:\n  mote doctor\n  mote doctor --format json | jq .can_run_linux"
)]
pub struct DoctorArgs {
    #[arg(long, value_name = "FORMAT", default_value = "table", help = FORMAT_HELP)]
    format: Format,
}

/// Runs every check and prints what was found.
pub fn main(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let diagnosis = diagnose(&Host::this_one());
    match &args.format {
        Format::Documents(format) => format.print(&diagnosis)?,
        Format::Table => print(&as_text(&diagnosis))?,
    }
    Ok(if diagnosis.can_run_linux {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn as_text(diagnosis: &Diagnosis) -> String {
    let rows: Vec<_> = diagnosis
        .checks
        .iter()
        .map(|check| {
            let status = match (check.finding.status, check.required) {
                (Status::Ok, _) => "ok",
                (Status::Missing, true) => "MISSING",
                (Status::Missing, false) => "missing",
            };
            [
                check.name.to_owned(),
                status.to_owned(),
                check.finding.found.clone(),
            ]
        })
        .collect();
    let mut text = table(["CHECK", "STATUS", "FOUND"], &rows);
    for check in &diagnosis.checks {
        if let Some(advice) = &check.finding.advice {
            text.push_str(&format!(
                "\n{} {}.\n  To do: {advice}.\n",
                check.name, check.purpose
            ));
        }
    }
    text.push_str(if diagnosis.can_run_linux {
        "\nMicroVMs with Linux can run here.\n"
    } else {
        "\nMicroVMs with Linux cannot run here: what is MISSING is needed.\n"
    });
    text
}
