//! What a VMM reports to the agent, one JSON document a line.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use crate::confinement::Landlock;
use outboard::BlobHash;
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
    /// Nothing a guest has a say in has been looked at, and every thread is behind
    /// its filter.
    Confined {
        /// How much Landlock adds.
        landlock: Landlock,
    },
    /// vCPU 0 is about to execute its first instruction.
    GuestEntered,
    /// The guest powered off through ACPI.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// Nothing of the guest's goes on until it is resumed.
    Paused,
    /// The guest goes on after a pause.
    Resumed,
    /// The agent asked for the end.
    Quit,
    /// The guest crashed in a way that stops a vCPU: triple fault, or a state
    /// the host cannot run.
    GuestFault {
        /// What KVM reported.
        reason: String,
    },
    /// The host, or this program, failed the guest.
    HostFailure {
        /// What was attempted, and why it failed.
        reason: String,
    },
    /// A device refused what the guest's driver did, or failed by itself (a panic in
    /// it, which is a defect of this program), and waits for its reset.
    DeviceFault {
        /// Such as `blk0`.
        device: String,
        /// What was wrong.
        reason: String,
    },
    /// The host has no room for what the guest wrote to a disk (ENOSPC, EDQUOT);
    /// the guest was given an I/O error. Told again once writes have succeeded
    /// in between, and at most once a minute.
    DiskFull {
        /// Such as `blk0`.
        device: String,
    },
    /// A blob of a disk is not what its hash says; the guest was given an I/O error, and
    /// is given one whenever it reads there. Told once for each blob of the disk.
    CorruptBlob {
        /// Such as `blk0`.
        device: String,
        /// The blob.
        hash: BlobHash,
        /// The number of its span (`outboard::SPAN_BYTES` of it) that could not be verified.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        span: Option<u64>,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// The kernel or the initrd is not what its hash says; no guest runs.
    CorruptBoot {
        /// `boot.kernel` or `boot.initrd`.
        field: String,
        /// The blob.
        hash: BlobHash,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A NIC's tap is gone: its interface was deleted. The guest sees that the
    /// link is down, and nothing brings it up again.
    LinkDown {
        /// Such as `net0`.
        device: String,
        /// What the tap answered.
        reason: String,
    },
}

/// Where events go.
#[derive(Debug)]
pub struct EventSink {
    output: Option<Mutex<File>>,
}

impl EventSink {
    /// Events to `output`, or nowhere.
    pub fn new(output: Option<File>) -> Self {
        Self {
            output: output.map(Mutex::new),
        }
    }

    /// Writes one event. A reader that is gone or stuck never stops the VM: the
    /// descriptor does not block (`config` sees to it), and what does not fit is lost.
    pub fn send(&self, kind: EventKind) {
        if self.output.is_some() {
            self.send_at(kind, monotonic_ns());
        }
    }

    /// Writes one event that happened at `monotonic_ns`.
    pub fn send_at(&self, kind: EventKind, monotonic_ns: u64) {
        let Some(output) = &self.output else { return };
        let event = Event { monotonic_ns, kind };
        let Ok(mut line) = serde_json::to_vec(&event) else {
            return;
        };
        line.push(b'\n');
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        // One write a line, so that lines of several threads never mix.
        let _ = output.write_all(&line);
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}
