//! The command `mote`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
