//! The virtual machine monitors, and how each is started, watched and ended.

mod guest;
mod machine;
mod mote;
mod process;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

pub use guest::{Disk, Guest, Nic};
pub use machine::Machine;

use crate::error::{BenchError, host};
use process::Process;

/// A virtual machine monitor.
#[derive(Debug)]
pub struct Monitor {
    kind: Kind,
    path: PathBuf,
    version: String,
}

/// What one machine is started with.
#[derive(Debug, Default)]
pub struct Prepared(mote::Ready);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Mote,
    Qemu,
    Firecracker,
}

/// How a monitor is called, and what it says its version is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// As in tables.
    pub name: String,
    /// In its own words.
    pub version: String,
}

/// The programs that are measured.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The `mote-vmm` to measure: a release build.
    pub mote_vmm: PathBuf,
    /// QEMU, to be run with `-M microvm`.
    pub qemu: Option<PathBuf>,
    /// Firecracker.
    pub firecracker: Option<PathBuf>,
}

impl Programs {
    /// A monitor for each, mote's first.
    pub fn monitors(&self) -> Result<Vec<Monitor>, BenchError> {
        let mut monitors = self.without_firecracker()?;
        if let Some(path) = &self.firecracker {
            monitors.push(Monitor::firecracker(path)?);
        }
        Ok(monitors)
    }

    /// For guests that Firecracker does not run.
    pub fn without_firecracker(&self) -> Result<Vec<Monitor>, BenchError> {
        let mut monitors = vec![Monitor::mote(&self.mote_vmm)];
        if let Some(path) = &self.qemu {
            monitors.push(Monitor::qemu(path)?);
        }
        Ok(monitors)
    }
}

impl Monitor {
    /// mote's own.
    pub fn mote(path: &Path) -> Self {
        // It has no version of its own: it is this repository's.
        Self {
            kind: Kind::Mote,
            path: path.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// QEMU with `-M microvm`.
    pub fn qemu(path: &Path) -> Result<Self, BenchError> {
        Self::with_version(Kind::Qemu, path)
    }

    /// Firecracker without its API.
    pub fn firecracker(path: &Path) -> Result<Self, BenchError> {
        Self::with_version(Kind::Firecracker, path)
    }

    fn with_version(kind: Kind, path: &Path) -> Result<Self, BenchError> {
        let output = Command::new(path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| BenchError::Start {
                path: path.to_owned(),
                source,
            })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(Self {
            kind,
            path: path.to_owned(),
            version: text.lines().next().unwrap_or_default().to_owned(),
        })
    }

    /// How it is called in tables.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Mote => "mote-vmm",
            Kind::Qemu => "QEMU microvm",
            Kind::Firecracker => "Firecracker",
        }
    }

    /// What it says its version is.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Both.
    pub fn identity(&self) -> Identity {
        Identity {
            name: self.name().to_owned(),
            version: self.version.clone(),
        }
    }

    /// What is done before anybody asks for a machine.
    pub fn prepare(&self) -> Result<Prepared, BenchError> {
        match self.kind {
            Kind::Mote => Ok(Prepared(mote::prepare()?)),
            Kind::Qemu | Kind::Firecracker => Ok(Prepared::default()),
        }
    }

    /// Starts it, from nothing.
    pub fn start(&self, guest: &Guest) -> Result<Machine<'_>, BenchError> {
        self.start_prepared(guest, self.prepare()?)
    }

    /// Starts it with what [`Monitor::prepare`] has made for it.
    pub fn start_prepared(
        &self,
        guest: &Guest,
        prepared: Prepared,
    ) -> Result<Machine<'_>, BenchError> {
        let mut command = Command::new(&self.path);
        let (process, console) = match self.kind {
            Kind::Mote => mote::start(&self.path, guest, prepared.0)?,
            Kind::Qemu => {
                qemu::configure(&mut command, guest);
                self.spawn(command)?
            }
            Kind::Firecracker => {
                command
                    .args(["--no-api", "--level", "Error", "--config-file"])
                    .arg(guest.firecracker_config());
                self.spawn(command)?
            }
        };
        Ok(Machine::new(self, process, console))
    }

    /// Starts a program whose standard output is the guest's console.
    fn spawn(&self, mut command: Command) -> Result<(Process, std::io::PipeReader), BenchError> {
        let (console, writer) = std::io::pipe().map_err(host("make a pipe"))?;
        let (errors, errors_end) = std::io::pipe().map_err(host("make a pipe"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(errors_end)
            .spawn()
            .map_err(|source| BenchError::Start {
                path: self.path.clone(),
                source,
            })?;
        Ok((Process::plain(child, errors), console))
    }
}
