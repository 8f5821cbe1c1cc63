//! Measuring elsewhere: in the lab, where this machine cannot run Linux guests, and in
//! a network namespace that nobody else is in. This program is started there and prints
//! JSON, which is read here.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::comparison::Comparison;
use crate::error::{BenchError, host};
use crate::interruption;

/// Set where everything is as it should be, and measuring can begin.
const ARRIVED: &str = "MOTE_BENCH_ARRIVED";

/// Whether this process is where it was to be.
pub fn has_arrived() -> bool {
    std::env::var_os(ARRIVED).is_some()
}

/// No benchmark takes so long.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// How long it is given to end by itself when it is told to.
const GRACE: Duration = Duration::from_secs(20);

/// Runs this program by `prefix`, which takes a command after its own arguments, with
/// `arguments` and what makes it print JSON, and reads that.
pub fn run(prefix: &[OsString], arguments: &[String]) -> Result<Comparison, BenchError> {
    let own = std::env::current_exe().map_err(host("find this program"))?;
    let mut words = prefix.iter().cloned().chain([own.into_os_string()]);
    let program = words.next().unwrap_or_default();
    let mut command = Command::new(&program);
    command
        .args(words)
        .args(arguments)
        .args(["--format", "json"])
        .env(ARRIVED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let child = command.spawn().map_err(|source| BenchError::Start {
        path: program.into(),
        source,
    })?;
    let mut child = Elsewhere(child);
    let mut output = Vec::new();
    if let Some(stdout) = &mut child.0.stdout {
        let mut bytes = [0; 4096];
        loop {
            interruption::wait_readable(&*stdout, PATIENCE)?;
            match stdout
                .read(&mut bytes)
                .map_err(host("read what was measured"))?
            {
                0 => break,
                length => output.extend_from_slice(&bytes[..length]),
            }
        }
    }
    let status = child.0.wait().map_err(host("wait for a program"))?;
    if !status.success() {
        return Err(BenchError::Program {
            command: format!("{command:?}"),
            errors: format!("{status}; see above"),
        });
    }
    serde_json::from_slice(&output).map_err(host("understand what was measured"))
}

/// A process that ends, with all that it started, when this is dropped.
struct Elsewhere(Child);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let end = Instant::now() + GRACE;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
