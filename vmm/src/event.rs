//! What a VMM reports to the agent, one JSON document a line.

use serde::{Deserialize, Serialize};

/// Something that happened to the microVM, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `CLOCK_MONOTONIC` of the host, in nanoseconds.
    pub monotonic_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kinds of event. A reader must skip a kind it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// `main` was entered.
    ProcessStarted,
    /// vCPU 0 is about to execute its first instruction.
    GuestEntered,
    /// The guest powered off through ACPI.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed in a way that stops a vCPU: triple fault, or a state
    /// the host cannot run.
    GuestFault {
        /// What KVM reported.
        reason: String,
    },
    /// A device refused what the guest's driver did and waits for its reset.
    DeviceFault {
        /// Such as `blk0`.
        device: String,
        /// What was wrong.
        reason: String,
    },
}
