//! What becomes of a microVM's devices while it runs.

use std::fmt;

use outboard::BlobHash;
use vmm::event::EventKind;

use crate::vm_process::printable;

/// A device that its guest can use no more, or not as before, as its VMM told.
///
/// As text it is one line without what a terminal would obey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvent {
    /// Such as `blk0`.
    pub device: String,
    /// What happened to it.
    pub kind: DeviceEventKind,
}

/// What happened to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEventKind {
    /// It does nothing until its driver resets it.
    Fault {
        /// What was wrong.
        reason: String,
    },
    /// The host has no room for what the guest wrote to it.
    DiskFull,
    /// A blob of it is not what its hash says.
    CorruptBlob {
        /// The blob.
        hash: BlobHash,
        /// The number of its span that is to be looked at, if the VMM says which.
        span: Option<u64>,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// The guest cannot be booted: its kernel or initrd is not what its hash says.
    CorruptBoot {
        /// The blob.
        hash: BlobHash,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// Its tap interface is gone.
    LinkDown {
        /// What the tap answered.
        reason: String,
    },
}

impl DeviceEvent {
    /// What `event` tells of a device, if it tells of one.
    pub(super) fn of(event: &EventKind) -> Option<Self> {
        let (device, kind) = match event {
            EventKind::DeviceFault { device, reason } => {
                let reason = reason.clone();
                (device, DeviceEventKind::Fault { reason })
            }
            EventKind::DiskFull { device } => (device, DeviceEventKind::DiskFull),
            EventKind::CorruptBlob {
                device,
                hash,
                span,
                reason,
            } => {
                let (hash, span, reason) = (*hash, *span, reason.clone());
                (device, DeviceEventKind::CorruptBlob { hash, span, reason })
            }
            EventKind::CorruptBoot {
                field,
                hash,
                reason,
            } => {
                let (hash, reason) = (*hash, reason.clone());
                (field, DeviceEventKind::CorruptBoot { hash, reason })
            }
            EventKind::LinkDown { device, reason } => {
                let reason = reason.clone();
                (device, DeviceEventKind::LinkDown { reason })
            }
            _ => return None,
        };
        Some(Self {
            device: device.clone(),
            kind,
        })
    }
}

impl fmt::Display for DeviceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = printable(&self.device);
        match &self.kind {
            DeviceEventKind::Fault { reason } => {
                let reason = printable(reason);
                write!(
                    f,
                    "the guest's {device} has stopped until its driver resets it: {reason}"
                )
            }
            DeviceEventKind::DiskFull => write!(
                f,
                "this host has no room for what the guest writes to {device}: the guest gets I/O errors"
            ),
            DeviceEventKind::CorruptBlob { reason, .. } => {
                let reason = printable(reason);
                write!(
                    f,
                    "the guest gets an I/O error from {device} instead of wrong data: {reason}"
                )
            }
            DeviceEventKind::CorruptBoot { reason, .. } => {
                let reason = printable(reason);
                write!(f, "no guest is booted from a wrong {device}: {reason}")
            }
            DeviceEventKind::LinkDown { reason } => {
                let reason = printable(reason);
                write!(
                    f,
                    "the guest's {device} has lost its tap interface, for good: {reason}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happens_to_devices_is_told_and_no_terminal_obeys_it() {
        let (device, reason) = ("blk0\u{7}".to_owned(), "a\n\u{1b}[2Jb\u{202e}".to_owned());
        let lines = [
            EventKind::DeviceFault {
                device: device.clone(),
                reason: reason.clone(),
            },
            EventKind::DiskFull {
                device: device.clone(),
            },
            EventKind::CorruptBlob {
                device: device.clone(),
                hash: BlobHash::of(b""),
                span: None,
                reason: reason.clone(),
            },
            EventKind::CorruptBoot {
                field: device.clone(),
                hash: BlobHash::of(b""),
                reason: reason.clone(),
            },
            EventKind::LinkDown { device, reason },
        ]
        .map(|event| DeviceEvent::of(&event).unwrap().to_string());
        for line in &lines {
            assert!(line.contains("blk0") && !line.contains(char::is_control));
        }
        for line in [&lines[0], &lines[2], &lines[3]] {
            assert!(line.ends_with(": a[2Jb"), "{line}");
        }
        assert_eq!(DeviceEvent::of(&EventKind::Paused), None);
    }
}
