//! The command line: Docker's verbs, flags and exit codes.

mod control;
mod doctor;
mod documents;
mod filter;
mod format;
mod image;
mod images;
mod inspect;
mod interrupt;
mod load;
mod node;
mod output;
mod progress;
mod ps;
mod pull;
mod push;
mod rmi;
mod run;
mod save;
mod source;
mod stats;
mod store;
mod system;
mod whole;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use hostagent::guest::{RunError, Stage, Timeline};
use hostagent::store::ImportError;
use hostagent::vm_process::printable_lines;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// mote itself failed, or was used wrongly; as `docker run` has it.
const EXIT_FAILURE: u8 = 125;
/// A signal ended mote before a workload ran: 128 and its number.
const EXIT_SIGNAL_BASE: i32 = 128;

const EXAMPLES: &str = "\
Examples:
  mote doctor                                  Can this machine run microVMs?
  mote run debian uname -a                     Pull an image, and run it
  mote load -i demo.tar                        Load what `docker save` wrote
  mote run demo:latest                         Run it
  mote run oci:images:debian /bin/uname -a     Run from an OCI layout, without loading it first
  echo hello | mote run -i demo:latest cat     Give it standard input

Files are kept under $MOTE_ROOT, or /var/lib/mote. When mote itself fails, or is
used wrongly, it exits with 125.";

/// Runs container images as microVMs.
#[derive(Debug, Parser)]
#[command(
    name = "mote",
    version,
    after_help = EXAMPLES,
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Load(load::LoadArgs),
    Save(save::SaveArgs),
    Images(images::ImagesArgs),
    Rmi(rmi::RmiArgs),
    Tag(rmi::TagArgs),
    Image(image::ImageArgs),
    Ps(ps::PsArgs),
    Inspect(inspect::InspectArgs),
    Pause(control::PauseArgs),
    Unpause(control::UnpauseArgs),
    Update(control::UpdateArgs),
    Stop(control::StopArgs),
    Stats(stats::StatsArgs),
    System(system::SystemArgs),
    Store(store::StoreArgs),
    Node(node::NodeArgs),
    Doctor(doctor::DoctorArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let timeline = Timeline::start();
    raise_descriptor_limit();
    let parser = Cli::command();
    let arguments = arguments(&parser);
    let parsed = parser
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match cli.command {
        Command::Run(args) => run::main(*args, timeline),
        Command::Pull(args) => pull::main(&args),
        Command::Push(args) => push::main(&args),
        Command::Load(args) => load::main(args),
        Command::Save(args) => save::main(&args),
        Command::Images(args) => images::main(&args),
        Command::Rmi(args) => rmi::rmi(&args),
        Command::Tag(args) => rmi::tag(&args),
        Command::Image(args) => image::main(args),
        Command::Ps(args) => ps::main(&args),
        Command::Inspect(args) => inspect::main(&args),
        Command::Pause(args) => control::pause(&args),
        Command::Unpause(args) => control::unpause(&args),
        Command::Update(args) => control::update(&args),
        Command::Stop(args) => control::stop(&args),
        Command::Stats(args) => stats::main(&args),
        Command::Store(args) => store::main(&args),
        Command::System(args) => system::main(&args),
        Command::Node(args) => node::main(&args),
        Command::Doctor(args) => doctor::main(&args),
    };
    done.unwrap_or_else(|error| {
        tell(&error);
        if guest_never_came_up(&error) {
            eprintln!("`mote doctor` tells whether guests with Linux can run on this machine.");
        }
        ExitCode::from(exit_code_of(&error))
    })
}

/// Allows as many descriptors as this process may ask for (`RLIMIT_NOFILE`, setrlimit(2)): an
/// image takes five for each of up to 256 layers, and many a shell allows 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Without it, what needs more says so.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Says on standard error what went wrong.
fn tell(error: &anyhow::Error) {
    // Guests and images have a say in some errors.
    eprintln!("mote: {}", printable_lines(&format!("{error:#}")));
}

/// The arguments of this process, ready for the parser.
fn arguments(parser: &clap::Command) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let run = parser.find_subcommand("run");
    if let Some(run) = run.filter(|run| arguments.get(1).is_some_and(|it| it == run.get_name())) {
        let mut of_run = arguments.split_off(2);
        run::boundary::mark(&mut of_run, run);
        arguments.append(&mut of_run);
    }
    arguments
}

/// Help goes to standard output and is a success; anything else is an error.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed output.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_FAILURE),
    }
}

/// Whether a guest ended, or took too long, before its init reported.
fn guest_never_came_up(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<RunError>() {
        Some(RunError::Died { stage, .. } | RunError::TimedOut { stage, .. }) => {
            *stage <= Stage::KernelBoot
        }
        _ => false,
    }
}

fn exit_code_of(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<RunError>() {
        return error.exit_code();
    }
    match error.downcast_ref::<ImportError>() {
        Some(ImportError::Cancelled) => interrupt::arrived().map_or(EXIT_FAILURE, |signal| {
            u8::try_from(EXIT_SIGNAL_BASE + signal).unwrap_or(EXIT_FAILURE)
        }),
        _ => EXIT_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_has_a_help_text() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let named = (command.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{named:?}");
            }
        }
    }
}
