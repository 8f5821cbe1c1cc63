//! What the agent and the guest init say to each other over vsock.
//!
//! The guest connects, the host accepts: first the control connection, then one
//! connection for each stream of the workload. Streams carry the workload's
//! bytes and nothing else; a half-close is the end of the stream. The control
//! connection carries [`HostMessage`]s one way and [`GuestMessage`]s the other,
//! each a little-endian `u32` length and that many bytes of JSON.
//!
//! ```text
//! guest                                       host
//!   connect CONTROL_PORT                        accept
//!   Ready                                  ->
//!                                          <-   Start(Workload)
//!   connect STDIN (if wanted), STDOUT, STDERR   accept
//!   Started  or  Failed                    ->
//!                                          <-   Signal …
//!   …both streams: all bytes, half-close   ->
//!   Exited                                 ->
//!                                          <-   close, once all is read
//!   power off
//! ```
//!
//! `Failed` may stand wherever `Started` or `Exited` may; it is the last message
//! then. A host that closes the workload's output stream makes the workload's
//! next write to it fail, as a closed pipe does; a guest that closes the input
//! stream will not read on. If the control connection ends before `Exited` or
//! `Failed`, either side takes the other for dead.

mod wire;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use wire::{Decoder, MAX_MESSAGE_BYTES, WireError, write_message};

/// The host's context id in vsock.
pub const HOST_CID: u32 = 2;
/// The host's port for the control connection.
pub const CONTROL_PORT: u32 = 1024;
/// The host's port for the workload's standard input.
pub const STDIN_PORT: u32 = 1025;
/// The host's port for the workload's standard output.
pub const STDOUT_PORT: u32 = 1026;
/// The host's port for the workload's standard error.
pub const STDERR_PORT: u32 = 1027;

/// From the agent to the guest init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is sent once in a guest's life"
)]
pub enum HostMessage {
    /// Run this. Sent once, after [`GuestMessage::Ready`].
    Start(Workload),
    /// Send this Linux signal number to the workload's main process.
    Signal(i32),
}

/// From the guest init to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestMessage {
    /// The init runs and waits for [`HostMessage::Start`].
    Ready {
        /// Nanoseconds of guest time since the kernel started, `CLOCK_BOOTTIME`.
        uptime_ns: u64,
    },
    /// The workload's main process has been executed.
    Started {
        /// Nanoseconds of guest time since the kernel started.
        uptime_ns: u64,
    },
    /// The workload could not be executed; the guest powers off.
    Failed(StartFailure),
    /// The workload's main process has ended and its output has been sent.
    Exited(ExitStatus),
}

/// Why a workload did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartFailure {
    /// What kind of failure: it decides the exit code of `mote run`.
    pub kind: StartFailureKind,
    /// What was attempted, on what, and why it failed.
    pub message: String,
}

/// Kinds of failure to start, with Docker's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFailureKind {
    /// The command was found but could not be executed: 126.
    NotExecutable,
    /// The command was not found: 127.
    NotFound,
    /// Anything else (mounts, user, working directory): 125.
    Setup,
}

/// How the workload's main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A process to run, and the system it expects around it: the parts of an OCI
/// image configuration that a guest can act on, after the agent has applied the
/// user's flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Program and arguments. A program without a slash is looked up in `PATH`
    /// of [`Workload::env`].
    pub args: Vec<String>,
    /// `NAME=value` pairs, the whole environment. The init adds `HOME` from the
    /// image's passwd, and `PATH` and `HOSTNAME`, where they are missing.
    pub env: Vec<String>,
    /// An absolute path; created if it does not exist.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid` in any mix; empty is root. Names
    /// are looked up in the image's own passwd and group.
    pub user: String,
    /// The guest's host name.
    pub hostname: String,
    /// Whether the workload's standard input is a stream from the host; if not,
    /// it is `/dev/null`.
    pub stdin: bool,
    /// The whole text of `/etc/hosts`; omitted: localhost and the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts_file: Option<String>,
    /// The whole text of `/etc/resolv.conf`; omitted: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<String>,
    /// What the guest's first NIC, `eth0`, is to be set up with; omitted: it has
    /// none, or it is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What is mounted before the workload starts, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// A directory of the host's, which a virtio-fs device serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The device's tag.
    pub tag: String,
    /// An absolute path; created if it does not exist.
    pub target: String,
    /// Whether it is mounted read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// How a NIC is set up: its link is brought up in any case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// In order; of each family, only one may have a gateway.
    pub addresses: Vec<NetworkAddress>,
}

/// An address of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkAddress {
    /// The address itself.
    pub ip: IpAddr,
    /// How many of its first bits are those of the subnet.
    pub prefix_length: u8,
    /// Where the default route of this family leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}
