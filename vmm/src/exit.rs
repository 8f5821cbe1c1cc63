//! How a microVM ends: the first reason given wins, and wakes the event loop.

use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why the microVM stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself. A microVM is not restarted in place.
    Reset,
    /// The agent asked for the end.
    Quit,
    /// A vCPU reached a state it cannot leave.
    GuestFault(String),
    /// The VMM, or the host, failed the guest.
    HostFailure(String),
}

/// Shared by all who can end the microVM.
#[derive(Debug)]
pub struct ExitLine {
    reason: OnceLock<ExitReason>,
    event: EventFd,
}

impl ExitLine {
    /// A line nobody has pulled yet.
    pub fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            reason: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        }))
    }

    /// Ends the microVM, unless it is ending already.
    pub fn pull(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok() {
            // A counter that starts at zero takes one more without blocking.
            let _ = self.event.write(1);
        }
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }

    /// Readable once there is a reason.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
