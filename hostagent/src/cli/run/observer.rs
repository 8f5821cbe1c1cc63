//! What `mote run` does with what it hears of its microVM.

use std::path::Path;

use hostagent::guest::{DeviceEvent, Observer};
use hostagent::running::Registration;
use vmm::confinement::Landlock;

use super::messages::Messages;

/// Keeps the record of the microVM, and tells the user what becomes of its devices.
pub struct RunObserver {
    registration: Registration,
    messages: Messages,
}

impl RunObserver {
    /// For the microVM of `registration`.
    pub fn new(registration: Registration) -> Self {
        Self {
            registration,
            messages: Messages::about("the guest's devices"),
        }
    }
}

impl Observer for RunObserver {
    fn vmm_started(&mut self, pid: u32, metrics: &Path) {
        self.registration.vmm_started(pid, metrics);
    }

    fn vmm_confined(&mut self, landlock: Landlock) {
        self.registration.vmm_confined(landlock);
    }

    fn device_event(&mut self, event: &DeviceEvent) {
        self.messages.tell(event);
    }
}
