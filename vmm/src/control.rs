//! The control protocol: how the agent asks a running microVM for something.
//!
//! Both hold one end of a Unix `SOCK_SEQPACKET` socket. Each packet is one JSON
//! document, a [`Request`] to the VMM or a [`Reply`] from it:
//!
//! ```text
//! {"version":1,"id":7,"command":"pause"}
//! {"version":1,"id":7,"outcome":{"result":"done"}}
//! {"version":1,"id":8,"command":{"set_balloon":{"target_bytes":1}}}
//! {"version":1,"id":8,"outcome":{"error":"target_bytes is 1, it must be …"}}
//! ```
//!
//! Every packet is answered, if its sender reads. `pause` and `balloon_statistics`
//! are answered when the vCPUs or the guest have obeyed, others at once, so
//! replies may overtake each other: the id tells which is which. A sender that
//! does not read is not listened to. When the agent closes the socket, the microVM
//! goes on.
//!
//! [`connection`] is the VMM's end of the socket, [`server`] obeys.

pub mod connection;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::devices::virtio::limiter::Direction;
use crate::spec::LimitsSpec;

/// The version of this protocol. A VMM refuses any other.
pub const CONTROL_VERSION: u32 = 1;

/// The longest request, in bytes. A longer one is refused unread.
pub const MAX_REQUEST_BYTES: usize = 4096;

/// The longest reply, in bytes: a status of 32 vCPUs and as many devices as there
/// can be stays well below.
pub const MAX_REPLY_BYTES: usize = 8192;

/// What the agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Always [`CONTROL_VERSION`].
    pub version: u32,
    /// Comes back in the reply.
    pub id: u64,
    /// What is to be done.
    pub command: Command,
}

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Bring all vCPUs out of the guest and let the devices rest. Answered once
    /// nothing of the guest's goes on.
    Pause,
    /// Let the guest go on.
    Resume,
    /// Tell how everything is.
    Status,
    /// Ask the guest to give up memory, or to take it back.
    SetBalloon {
        /// How much the guest is to give up in all: a multiple of 4096, at most
        /// its memory.
        target_bytes: u64,
    },
    /// Ask the guest how it uses its memory.
    BalloonStatistics,
    /// Give a disk, or a NIC in one direction, other limits from now on.
    SetLimits {
        /// Its name, such as `blk0` or `net0`.
        device: String,
        /// Which frames of a NIC; a disk has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        direction: Option<Direction>,
        /// All of its limits there: what is omitted is not limited any more.
        limits: LimitsSpec,
    },
    /// A console's terminal has another size now.
    Resize {
        /// Its name, such as `console0`.
        device: String,
        /// The width in characters, 1 or more.
        columns: u16,
        /// The height in characters, 1 or more.
        rows: u16,
    },
    /// Press the power button. What follows is up to the guest.
    PowerButton,
    /// End the microVM at once, whatever the guest is doing.
    Quit,
}

/// What the VMM answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Always [`CONTROL_VERSION`].
    pub version: u32,
    /// That of the request; `None` where none could be read.
    pub id: Option<u64>,
    /// How it went.
    pub outcome: Outcome,
}

/// How a request went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was obeyed.
    Result(Answer),
    /// It was not, for this reason.
    Error(String),
}

/// The result of a request that was obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// There is no more to say.
    Done,
    /// To [`Command::Status`].
    Status(Status),
    /// To [`Command::BalloonStatistics`].
    BalloonStatistics(BalloonStatistics),
}

/// How a microVM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Whether it runs.
    pub state: RunState,
    /// Each vCPU.
    pub vcpus: Vec<VcpuState>,
    /// Each virtio device, in the order of their windows.
    pub devices: Vec<DeviceStatus>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonStatus>,
}

/// Whether a microVM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It runs.
    Running,
    /// It was asked to pause, and not everything stands still yet.
    Pausing,
    /// Nothing of the guest's goes on.
    Paused,
}

/// Where a vCPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VcpuState {
    /// Its thread waits for the start.
    Starting,
    /// In the guest, which may have halted it.
    Running,
    /// Outside, until the guest goes on.
    Paused,
}

/// How a device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStatus {
    /// Its name in events, such as `blk0`.
    pub name: String,
    /// What the guest's driver has made of it.
    pub state: DeviceState,
}

/// What a driver has made of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// No driver uses it.
    Idle,
    /// A driver uses it.
    Active,
    /// It refused what the driver did and waits to be reset.
    NeedsReset,
}

/// How the balloon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatus {
    /// How much the guest is to give up.
    pub target_bytes: u64,
    /// How much it says it has given up.
    pub actual_bytes: u64,
    /// How many bytes of free pages it has reported so far.
    pub reported_bytes: u64,
}

/// How the guest says it uses its memory. What it did not say is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonStatistics {
    /// Bytes swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in_bytes: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out_bytes: Option<u64>,
    /// Page faults that needed a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Memory that nothing is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// All memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Memory that new programs could have without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Memory that holds files and can be reclaimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_cache_bytes: Option<u64>,
    /// Huge pages allocated for `hugetlbfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
}

#[cfg(test)]
mod tests;
