//! A device's interrupt: the status bits the driver reads and the line it hears.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::metrics::device::DeviceMetrics;

/// A used buffer notification (virtio 1.3, section 4.2.2, `InterruptStatus`).
const USED_BUFFER: u32 = 1 << 0;
/// A configuration change notification.
const CONFIGURATION_CHANGE: u32 = 1 << 1;

/// Apart from the device's lock, so that the driver reads and acknowledges an
/// interrupt while the device is busy with a request.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    /// Bits that read as set, whatever is acknowledged.
    standing: u32,
    line: EventFd,
    metrics: DeviceMetrics,
}

impl Interrupt {
    /// An interrupt on a fresh line; see [`Interrupt::line`].
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            standing: 0,
            line: EventFd::new(0)?,
            metrics: DeviceMetrics::default(),
        })
    }

    /// An interrupt that others raise too, for used buffers, who cannot set its
    /// status: that says at all times that there may be some, which a driver must
    /// bear.
    pub fn shared() -> io::Result<Self> {
        Ok(Self {
            standing: USED_BUFFER,
            ..Self::new()?
        })
    }

    /// Counts how often it is raised by this process.
    pub fn counted_by(self, metrics: DeviceMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// What to register as an irqfd.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Tells the driver of used buffers.
    pub fn signal_used_buffer(&self) {
        self.signal(USED_BUFFER);
    }

    /// Tells the driver that the configuration or the status changed.
    pub fn signal_configuration_change(&self) {
        self.signal(CONFIGURATION_CHANGE);
    }

    fn signal(&self, bit: u32) {
        // One that the driver has not acknowledged yet says this too: a driver looks at
        // its queues and the configuration afterwards, or a level-triggered line, which
        // would be high all the time, would lose this for it as well. An edge that is lost
        // to a masked interrupt would not be made up for: but for a fault, nothing is
        // signalled before DRIVER_OK, when drivers have theirs.
        if self.status.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
            return;
        }
        self.metrics.interrupt();
        // KVM consumes the counter at once; it cannot overflow.
        let _ = self.line.write(1);
    }

    /// `InterruptStatus`.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst) | self.standing
    }

    /// `InterruptACK`: what the driver has yet to look at is signalled anew after this.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_has_not_acknowledged_yet_is_not_raised_again() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.signal_used_buffer();
        interrupt.signal_used_buffer();
        assert_eq!(interrupt.line().read().unwrap(), 1);
        // Another reason is.
        interrupt.signal_configuration_change();
        assert_eq!(interrupt.line().read().unwrap(), 1);
        assert_eq!(interrupt.status(), USED_BUFFER | CONFIGURATION_CHANGE);
        interrupt.acknowledge(USED_BUFFER);
        interrupt.signal_configuration_change();
        interrupt.signal_used_buffer();
        assert_eq!(interrupt.line().read().unwrap(), 1);
    }
}
