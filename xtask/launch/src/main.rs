//! What `cargo xtask` starts: builds the program `xtask` and becomes it.
//!
//! The alias runs cargo with `--quiet`, since cargo's own lines have no place
//! between those of the commands, which are run to be read and piped. But the first
//! build takes a minute: this program has no dependencies, is built in a moment,
//! and tells how that of `xtask` goes.

use std::env;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// Goes back to the first column and clears the line.
const CLEAR: &str = "\r\x1b[2K";

fn main() -> ExitCode {
    match launch() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: cannot run the developer's commands: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns only if `xtask` could not be built or started.
fn launch() -> io::Result<ExitCode> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo)
        .args(["build", "--package", "xtask", "--bin", "xtask"])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        // It would be taken for that of the package that is built.
        .env_remove("CARGO_MANIFEST_DIR")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = match build.stderr.take() {
        Some(stderr) => {
            let errors = io::stderr();
            let on_terminal = errors.is_terminal();
            show(BufReader::new(stderr), errors, on_terminal)?
        }
        None => String::new(),
    };
    let status = build.wait()?;
    if !status.success() {
        eprint!("{said}");
        return Ok(ExitCode::FAILURE);
    }
    Err(Command::new(program()?).args(env::args_os().skip(1)).exec())
}

/// `xtask` is built beside this program.
fn program() -> io::Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name("xtask"))
}

/// What cargo says while it works, but for the last line.
const WORKING: [&str; 6] = [
    "Blocking",
    "Updating",
    "Locking",
    "Downloading",
    "Downloaded",
    "Compiling",
];

/// Shows in one line what cargo is at, and returns all it says. Without a
/// terminal: a plain line for all of it.
fn show(said: impl BufRead, mut errors: impl Write, on_terminal: bool) -> io::Result<String> {
    let (mut all, mut shown) = (String::new(), false);
    for line in said.lines() {
        let line = line?;
        let verb = line.split_whitespace().next().unwrap_or_default();
        if WORKING.contains(&verb) {
            let text = "building the developer's commands";
            if on_terminal {
                write!(errors, "{CLEAR}{text}: {}", line.trim_start())?;
            } else if !shown {
                writeln!(errors, "{text} …")?;
            }
            shown = true;
        }
        all.push_str(&line);
        all.push('\n');
    }
    if on_terminal && shown {
        write!(errors, "{CLEAR}")?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_cargo_says_is_kept_for_when_it_fails() {
        let said = "   Compiling one v1.0.0 (/a)\nerror: no\n";
        let mut shown = Vec::new();
        assert_eq!(show(said.as_bytes(), &mut shown, false).unwrap(), said);
        assert_eq!(shown, "building the developer's commands …\n".as_bytes());
    }

    #[test]
    fn xtask_is_looked_for_beside_this_program() {
        assert_eq!(program().unwrap().file_name().unwrap(), "xtask");
    }
}
