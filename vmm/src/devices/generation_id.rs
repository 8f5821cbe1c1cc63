//! The VM generation id: tells the guest that it has become a copy, so that it
//! draws no random number that another copy draws too.
//!
//! The format is that of Microsoft's "Virtual Machine Generation ID": 16 bytes in
//! reserved memory, announced by ACPI, and a notification when they change.

use std::io;

use vm_memory::{Bytes, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::memory::GuestMemory;

/// The length of an id.
pub const GENERATION_ID_BYTES: usize = 16;

/// Why an id could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum GenerationIdError {
    /// Its place is not guest memory: a defect of the layout.
    #[error("cannot write the VM generation id to guest memory")]
    Write(#[source] GuestMemoryError),
    /// The interrupt was not raised.
    #[error("cannot notify the guest of its new VM generation id")]
    Notify(#[source] io::Error),
}

/// The id in guest memory and the line that tells of a new one.
#[derive(Debug)]
pub struct GenerationId {
    memory: GuestMemory,
    line: EventFd,
}

impl GenerationId {
    /// Puts `id` where the ACPI tables say it is, before the guest runs. `line` is
    /// the irqfd of [`layout::GENERATION_ID_GSI`].
    pub fn new(
        memory: GuestMemory,
        line: EventFd,
        id: [u8; GENERATION_ID_BYTES],
    ) -> Result<Self, GenerationIdError> {
        let this = Self { memory, line };
        this.write(id)?;
        Ok(this)
    }

    /// Stores a new id and notifies the guest. To be called while no vCPU runs, so
    /// that none draws a number between its first instruction and the id.
    pub fn store(&self, id: [u8; GENERATION_ID_BYTES]) -> Result<(), GenerationIdError> {
        self.write(id)?;
        self.line.write(1).map_err(GenerationIdError::Notify)
    }

    fn write(&self, id: [u8; GENERATION_ID_BYTES]) -> Result<(), GenerationIdError> {
        self.memory
            .write_slice(&id, layout::GENERATION_ID)
            .map_err(GenerationIdError::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn a_new_id_is_in_memory_when_the_guest_is_notified() {
        let memory = memory::create(2 << 20).unwrap();
        let stored = |memory: &GuestMemory| {
            let mut id = [0; GENERATION_ID_BYTES];
            memory.read_slice(&mut id, layout::GENERATION_ID).unwrap();
            id
        };
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let id = GenerationId::new(memory.clone(), line.try_clone().unwrap(), [7; 16]).unwrap();
        assert_eq!(stored(&memory), [7; 16]);
        assert!(line.read().is_err(), "notified before there is a guest");
        id.store([8; 16]).unwrap();
        assert_eq!(stored(&memory), [8; 16]);
        assert_eq!(line.read().unwrap(), 1);
    }
}
