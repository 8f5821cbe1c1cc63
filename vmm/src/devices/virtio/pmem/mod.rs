//! virtio-pmem (virtio 1.3, section 5.19): a file of the host's as a range of the
//! guest's physical memory.
//!
//! [`mapping`] is the file, which KVM maps into the guest: what the guest reads there
//! it reads from the host's page cache, which all microVMs with the same file share.
//! This file is the device, which says where that is and flushes what was written.

pub mod mapping;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::queues::{Chain, DeviceFault, Drained, Queues, Served, Taken};
use super::{VirtioDevice, read_config_bytes};
use crate::block::{BlockBackend, Operation, RESET_PATIENCE, Ticket};
use crate::memory::GuestMemory;

/// The only kind of request (section 5.19.6, `VIRTIO_PMEM_REQ_TYPE_FLUSH`).
const FLUSH: u32 = 0;
/// What is answered, a little-endian number (section 5.19.7).
const DONE: u32 = 0;
const FAILED: u32 = u32::MAX;
const ANSWER_BYTES: u32 = 4;

const QUEUE_SIZES: [u16; 1] = [64];

/// `struct virtio_pmem_config`: where it starts, then its size.
const CONFIG_BYTES: usize = 16;

/// The device.
pub struct Pmem {
    name: String,
    config: [u8; CONFIG_BYTES],
    /// Flushes the file. Missing where nothing is ever written.
    backend: Option<Box<dyn BlockBackend>>,
    /// Requests wait until the backend has room.
    stalled: bool,
    /// What was in flight before a reset still is.
    unsettled: bool,
}

impl Pmem {
    /// A device whose `bytes` are at `start` of the guest's memory. `backend` flushes
    /// what the guest has written there.
    pub fn new(
        name: String,
        start: GuestAddress,
        bytes: u64,
        backend: Option<Box<dyn BlockBackend>>,
    ) -> Self {
        let mut config = [0; CONFIG_BYTES];
        config[..8].copy_from_slice(&start.0.to_le_bytes());
        config[8..].copy_from_slice(&bytes.to_le_bytes());
        Self {
            name,
            config,
            backend,
            stalled: false,
            unsettled: false,
        }
    }

    /// Answers one request, or begins to do what it asks for.
    fn take(&mut self, memory: &GuestMemory, chain: Chain) -> Result<Taken, DeviceFault> {
        if self.backend.as_ref().is_some_and(|disk| !disk.has_room()) {
            self.stalled = true;
            return Ok(Taken::Refused);
        }
        let head = chain.head_index();
        let (kind, place) = parse(memory, chain)?;
        let ticket = Ticket {
            head,
            status: place,
            written: ANSWER_BYTES,
            writes: false,
        };
        let result = match (kind, &mut self.backend) {
            (FLUSH, None) => Ok(()),
            (FLUSH, Some(backend)) => match backend.start(ticket, Operation::Flush) {
                None => return Ok(Taken::Kept { moved: 0 }),
                Some(result) => result,
            },
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let written = answer(memory, place, &result)?;
        Ok(Taken::Used(Served { written, moved: 0 }))
    }

    fn serve(&mut self, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let memory = queues.memory();
        self.stalled = false;
        queues.take(0, |chain| self.take(memory, chain))
    }

    /// Returns to the driver what has been in flight and is done.
    fn return_completed(&mut self, mut queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        let Some(backend) = &mut self.backend else {
            return Ok(());
        };
        // Each request in flight once: what is begun meanwhile has its own turn.
        let mut turns = QUEUE_SIZES[0];
        let mut used = false;
        while let Some((ticket, result)) = backend.complete() {
            if let Some(queues) = queues.as_deref_mut() {
                let written = answer(queues.memory(), ticket.status, &result)?;
                queues.push_used(0, ticket.head, written)?;
                used = true;
            }
            turns -= 1;
            if turns == 0 {
                backend.wake();
                break;
            }
        }
        match queues {
            Some(queues) if used => queues.notify(0),
            _ => Ok(()),
        }
    }

    fn submit(&mut self) {
        if let Some(backend) = &mut self.backend {
            backend.submit();
        }
    }

    /// Whatever is in flight ends before its memory is the driver's again, or keeps the
    /// device from being used.
    fn wait(&mut self, patience: Duration) {
        let backend = self.backend.as_mut();
        self.unsettled = !backend.is_none_or(|backend| backend.wait(patience));
    }
}

/// What is asked for, and where the answer goes.
fn parse(memory: &GuestMemory, chain: Chain) -> Result<(u32, GuestAddress), DeviceFault> {
    let fault = |reason| DeviceFault::Chain { queue: 0, reason };
    let mut kind = [0; 4];
    chain
        .clone()
        .reader(memory)
        .ok()
        .and_then(|mut request| request.read_exact(&mut kind).ok())
        .ok_or_else(|| fault("not a request of four bytes in readable memory"))?;
    let place = chain
        .writable()
        .next()
        .filter(|place| place.len() >= ANSWER_BYTES)
        .ok_or_else(|| fault("a request without room for its answer"))?
        .addr();
    if !memory.check_range(place, ANSWER_BYTES as usize) {
        return Err(fault("an answer lies outside guest memory"));
    }
    Ok((u32::from_le_bytes(kind), place))
}

/// Writes the answer; returns its length.
fn answer(
    memory: &GuestMemory,
    place: GuestAddress,
    result: &io::Result<()>,
) -> Result<u32, DeviceFault> {
    let number = match result {
        Ok(()) => DONE,
        Err(_) => FAILED,
    };
    memory
        .write_slice(&number.to_le_bytes(), place)
        .map_err(|_| DeviceFault::Chain {
            queue: 0,
            reason: "an answer lies outside guest memory",
        })?;
    Ok(ANSWER_BYTES)
}

impl VirtioDevice for Pmem {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn process_queue(
        &mut self,
        _index: usize,
        queues: &mut Queues,
    ) -> Result<Drained, DeviceFault> {
        let result = self.serve(queues);
        self.submit();
        result
    }

    fn reset(&mut self) {
        self.wait(RESET_PATIENCE);
        self.stalled = false;
    }

    fn queue_taken_away(&mut self, _index: usize) {
        self.wait(RESET_PATIENCE);
    }

    fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        self.backend.as_ref()?.completions()
    }

    fn process_backend(&mut self, mut queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        if let Some(backend) = &mut self.backend {
            backend.acknowledge();
        }
        if self.unsettled {
            self.wait(Duration::ZERO);
            return Ok(());
        }
        let returned = self.return_completed(queues.as_deref_mut());
        let served = match queues {
            Some(queues) if self.stalled && returned.is_ok() => self.serve(queues),
            _ => Ok(Drained::Empty),
        };
        self.submit();
        returned?;
        if served? == Drained::Again
            && let Some(backend) = &mut self.backend
        {
            self.stalled = true;
            backend.wake();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
