//! How one `mote` asks the one that runs a microVM for something.
//!
//! The agent that runs it listens on a Unix `SOCK_SEQPACKET` socket beside the record of
//! what runs, which only its own user can open. A client connects, sends one [`Verb`] as
//! a JSON document and reads one [`vmm::control::Outcome`]. What concerns the machine
//! goes on to its VMM ([`vmm::control`]); nothing else does.

mod client;
mod server;

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::SocketAddrUnix;
use serde::{Deserialize, Serialize};
use vmm::control::Command;
use vmm::devices::virtio::limiter::Direction;
use vmm::spec::LimitsSpec;

pub use client::{AskError, ask};
pub use server::{Asked, Server};

/// What may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// Stop all vCPUs and devices.
    Pause,
    /// Let them go on.
    Unpause,
    /// Have the guest give up so much memory in all.
    SetBalloon {
        /// A multiple of 4096.
        target_bytes: u64,
    },
    /// Limit a disk or a NIC.
    SetLimits {
        /// Such as `net0`.
        device: String,
        /// Of a NIC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        direction: Option<Direction>,
        /// What is omitted is not limited any more.
        limits: LimitsSpec,
    },
    /// Send the workload the signal that asks it to end.
    Stop,
    /// End the microVM.
    Kill,
}

impl Verb {
    /// What the VMM is asked, if it is for the VMM.
    fn command(self) -> Result<Command, Asked> {
        Ok(match self {
            Self::Pause => Command::Pause,
            Self::Unpause => Command::Resume,
            Self::SetBalloon { target_bytes } => Command::SetBalloon { target_bytes },
            Self::SetLimits {
                device,
                direction,
                limits,
            } => Command::SetLimits {
                device,
                direction,
                limits,
            },
            Self::Stop => return Err(Asked::Stop),
            Self::Kill => return Err(Asked::Kill),
        })
    }
}

/// Where a microVM's socket is.
#[derive(Debug, Clone)]
pub struct Place {
    directory: PathBuf,
    name: String,
}

impl Place {
    /// The socket of the microVM `id` in `directory`.
    pub fn new(directory: &Path, id: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            name: id.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// Makes the directory, for its user alone.
    fn create_directory(&self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        fs::set_permissions(&self.directory, Permissions::from_mode(0o700))
    }

    /// Calls `with` with the socket's address: by a descriptor of the directory, whose
    /// path may be longer than an address can be (unix(7)).
    fn with_address<T>(
        &self,
        with: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.directory, flags, Mode::empty())?;
        let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), self.name);
        Ok(with(&SocketAddrUnix::new(path)?)?)
    }
}

#[cfg(test)]
mod tests;
