//! Linux guests that measure: one root image, one kernel, one init for all of them.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::BenchError;
use crate::monitor::{Disk, Guest, Machine};

/// The guest's memory.
pub const MEMORY_MIB: u64 = 256;

/// Longer than Linux takes to start where every instruction is emulated.
const START_PATIENCE: Duration = Duration::from_secs(240);

/// What Linux guests are made of.
#[derive(Debug, Clone)]
pub struct Images {
    /// The kernel: an ELF file.
    pub kernel: PathBuf,
    /// The root file system: EROFS, with `/usr/local/bin/bench` as its init.
    pub root: PathBuf,
}

impl Images {
    /// A guest that does what `arguments` say.
    pub fn guest(&self, arguments: &str) -> Result<Guest, BenchError> {
        let command_line = format!(
            "console=ttyS0 quiet root=/dev/vda ro rootfstype=erofs init=/usr/local/bin/bench -- {arguments}"
        );
        let mut guest = Guest::linux(&self.kernel, command_line, MEMORY_MIB)?;
        guest.disks.push(Disk {
            file: self.root.clone(),
            read_only: true,
        });
        Ok(guest)
    }
}

/// Waits until the init has made everything ready.
pub fn wait_until_ready(machine: &mut Machine<'_>) -> Result<(), BenchError> {
    loop {
        let line = machine.line(START_PATIENCE)?;
        match line.as_str() {
            "ready" => return Ok(()),
            line if line.starts_with("failed: ") => return Err(unexpected(machine, line, "ready")),
            // The kernel or the firmware.
            _ => {}
        }
    }
}

/// What the guest prints up to and without the line `done`.
pub fn lines_until_done(
    machine: &mut Machine<'_>,
    patience: Duration,
) -> Result<Vec<String>, BenchError> {
    let mut lines = Vec::new();
    loop {
        let line = machine.line(patience)?;
        match line.as_str() {
            "done" => return Ok(lines),
            line if line.starts_with("failed: ") => return Err(unexpected(machine, line, "done")),
            _ => lines.push(line),
        }
    }
}

/// The guest wrote `found`.
pub fn unexpected(machine: &Machine<'_>, found: &str, expected: &str) -> BenchError {
    BenchError::Unexpected {
        name: machine.name().to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    }
}
