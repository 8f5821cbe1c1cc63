//! How a process that nobody trusts is born.
//!
//! [`Jail::spawn`] makes a process that starts with everything it will ever have:
//! the descriptors it was given, under the numbers they have here, and nothing
//! else. It has user, mount, PID, network, IPC, UTS and cgroup namespaces of its
//! own, an empty read-only root, a uid and gid that no other process has, no
//! capabilities and no way to gain any, resource limits, a session without a
//! terminal, and a cgroup it was born in. All of that is done between `clone3(2)`
//! and `execveat(2)`, by this crate, but for the namespaces that take long, which may be begun
//! before ([`NewNamespaces`]); what a process can only do for itself after
//! that (Landlock, seccomp, not being dumpable) is the program's part.
//!
//! The child shares this process's memory until it executes the program, as after
//! `vfork(2)`: a large agent starts one as fast as a small one, and the step that
//! failed is known by name.

mod birth;
mod cgroup;
mod limits;
mod namespaces;
mod process;

use std::ffi::CString;
use std::os::fd::BorrowedFd;

pub use cgroup::{Cgroup, CgroupLimits, Cgroups, IoLimit, hierarchy as cgroup_hierarchy};
pub use limits::Limits;
pub use namespaces::NewNamespaces;
pub use process::{Ended, Jailed};

/// The uid and gid of a jailed process are this and its PID, so that no two that
/// live at one time share one. systemd's table of UIDs (UIDS-GIDS.md) leaves the
/// range from here to 0x7ffd_ffff to nobody; a PID is below 2²².
pub const FIRST_ID: u32 = 0x7000_0000;

/// A program and all it will have. The program is one static executable: there is
/// no file system for it to load libraries from.
#[derive(Debug)]
pub struct Jail<'a> {
    /// The executable, open. May be `O_PATH`.
    pub program: BorrowedFd<'a>,
    /// Its arguments, its own name first. Its environment is empty.
    pub arguments: Vec<CString>,
    /// Standard input, output and error.
    pub standard: [BorrowedFd<'a>; 3],
    /// What it finds under the numbers these have here; all 3 or more.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// What it may use of the host.
    pub limits: Limits,
    /// Namespaces for it that were begun before. Omitted: they are made with the
    /// process.
    pub namespaces: Option<NewNamespaces>,
    /// A directory of a cgroup version 2 hierarchy. Omitted: that of this process.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it is killed when the calling thread ends.
    pub dies_with_parent: bool,
}

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A descriptor of the program's would take the place of a standard one.
    #[error("descriptor {0} cannot be passed on: 0 to 2 are standard input, output and error")]
    StandardNumber(i32),
    /// The process was not made.
    #[error("cannot make a process in namespaces of its own (clone3)")]
    Clone(#[source] std::io::Error),
    /// The process was made, but not confined, and so it ended.
    #[error("cannot {step} for a confined process")]
    Confine {
        /// What failed.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The process is confined, but is not the program.
    #[error("cannot execute the program (execveat)")]
    Execute(#[source] std::io::Error),
    /// This process's own state could not be read.
    #[error("cannot {0} before a confined process is started")]
    Prepare(&'static str, #[source] std::io::Error),
}
