//! What the end-to-end tests share.
//!
//! They run `mote` as a user would, on a machine that runs Linux guests. `cargo
//! xtask test` starts them there, directly or in the lab, with these variables:
//!
//! | variable | meaning |
//! |---|---|
//! | `MOTE_E2E_IMAGE` | reference of the Debian test image, an OCI layout |
//! | `MOTE_E2E_KERNEL` | Debian's cloud kernel, its modules under `../lib/modules` |
//! | `MOTE_ROOT` | a store that holds the test image already |
//! | `PATH` | begins with the folder of `mote` and `mote-vmm` |
//!
//! Without them a test fails: it never passes for want of a guest.

pub mod oci;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

/// The value of a variable that `cargo xtask test` sets.
pub fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set; run these tests with: cargo xtask test"))
}

/// The reference of the Debian test image.
pub fn image() -> String {
    variable("MOTE_E2E_IMAGE")
}

/// Where a file is that `mote` is installed with: `vmlinux` or `initrd`.
pub fn installed(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("PATH is set");
    let programs = std::env::split_paths(&path).next().expect("PATH has mote");
    programs.join("../share/mote").join(name)
}

/// How a run of `mote` ended.
#[derive(Debug)]
pub struct Run {
    /// The exit code; 128 + n if a signal ended `mote` itself.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Run {
    /// From what a process left.
    pub fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = output.status.signal().map(|signal| 128 + signal);
        Self {
            code: output.status.code().or(signal).unwrap_or(-1),
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }

    /// Standard output as text, without the last line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, without the last line's end.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Fails the test unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "exit code\n--- stdout\n{}\n--- stderr\n{}",
            self.text(),
            self.errors()
        );
        self
    }
}

/// `mote` with `arguments`, nothing on standard input.
pub fn mote<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Run {
    let output = command(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("mote can be started");
    Run::of(output)
}

/// `mote` with `arguments`, with its kernel and initrd in `directory`.
pub fn mote_with_assets<'a>(directory: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Run {
    let output = command(arguments)
        .env("MOTE_ASSETS", directory)
        .stdin(Stdio::null())
        .output()
        .expect("mote can be started");
    Run::of(output)
}

/// `mote` with `arguments` and `input` on standard input.
pub fn mote_with_input<'a>(arguments: impl IntoIterator<Item = &'a str>, input: Vec<u8>) -> Run {
    let mut child = start(command(arguments).stdin(Stdio::piped()));
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("mote can be waited for");
    // A command that ends without reading everything is not this test's matter.
    let _ = writer.join().expect("the writer does not panic");
    Run::of(output)
}

/// A `mote` that goes on while the test looks at it.
pub fn mote_in_background<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Child {
    start(command(arguments).stdin(Stdio::null()))
}

/// A `mote` that goes on while the test looks at it, and reads from a pipe.
pub fn mote_in_background_with_input<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Child {
    start(command(arguments).stdin(Stdio::piped()))
}

/// A `mote run -i` with these arguments that goes on, whose workload has printed the
/// line `ready`. Closing its standard input is how a test ends it.
#[track_caller]
pub fn run_until_ready<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Child {
    let arguments = ["run", "-i"].into_iter().chain(arguments);
    let mut run = mote_in_background_with_input(arguments);
    let stdout = run.stdout.as_mut().expect("standard output is a pipe");
    let mut line = String::new();
    // What follows the line is for who waits for the end.
    let read = BufReader::with_capacity(1, stdout).read_line(&mut line);
    if read.is_err() || line != "ready\n" {
        let run = finish(run);
        panic!(
            "it printed {line:?}, not that it is ready; {}",
            run.errors()
        );
    }
    run
}

/// Waits for a `mote` that was started in the background.
pub fn finish(child: Child) -> Run {
    Run::of(child.wait_with_output().expect("mote can be waited for"))
}

fn command<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new("mote");
    command.args(arguments);
    command
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mote can be started")
}

/// Runs `script` with `/bin/sh` in a guest of the test image.
pub fn shell(script: &str) -> Run {
    mote(["run", "--rm", &image(), "/bin/sh", "-c", script])
}
