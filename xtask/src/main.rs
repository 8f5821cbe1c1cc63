//! The commands a developer of mote runs: `cargo xtask COMMAND`.

mod background;
mod bench;
mod cache;
mod cargo;
mod check;
mod command;
mod debian_kernel;
mod debian_root;
mod demo;
mod demo_image;
mod distribution;
mod fuzz;
mod kernel;
mod lab;
mod packages;
mod progress;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo                      See mote run a container image as a microVM
  cargo xtask test                      Run all tests
  cargo xtask test -p vmm               Run those of one package
  cargo xtask lab                       A shell on a machine with hardware virtualization
  cargo xtask lab -- mote doctor        One command there; its streams and exit code are yours
  cargo xtask check                     Formatting, lints, licences
  cargo xtask fuzz --seconds 60 block   Hostile input for one device
  cargo xtask bench start               How fast a microVM starts, beside others

What is missing is installed with apt-get on Debian, through sudo unless you are
root. Downloads and slow builds are kept in $XDG_CACHE_HOME/mote, or
~/.cache/mote, which may be deleted at any time.";

/// Builds, tests and demonstrates mote.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true,
    after_help = EXAMPLES,
    max_term_width = 100
)]
enum Xtask {
    Demo(demo::Options),
    Test(test::Options),
    Lab(lab::Options),
    Kernel(kernel::Options),
    Build(distribution::Options),
    Check(check::Options),
    Bench(bench::Options),
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    if lab::is_init() {
        lab_init::run();
    }
    let result = match Xtask::parse() {
        Xtask::Demo(options) => demo::main(&options),
        Xtask::Test(options) => test::main(&options),
        Xtask::Lab(options) => lab::main(options),
        Xtask::Kernel(options) => kernel::main(&options),
        Xtask::Build(options) => distribution::main(&options),
        Xtask::Check(options) => check::main(&options),
        Xtask::Bench(options) => bench::main(&options),
        Xtask::Fuzz(options) => fuzz::main(&options),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Xtask::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_has_a_help_text() {
        for command in Xtask::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let named = (command.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{named:?}");
            }
        }
    }
}
