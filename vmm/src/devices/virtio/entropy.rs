//! virtio-rng (virtio 1.3, section 5.4): random bytes from the host.

use std::fs::File;
use std::io::Read;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::Bytes;

use super::VirtioDevice;
use super::queues::{Chain, DeviceFault, Drained, Queues, Served};
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [64];

/// The most that one request is given, however much it asks for: enough to seed
/// any generator many times over, little enough to stay on the stack. A driver
/// must expect fewer bytes than it has room for (section 5.4.6.1).
const REQUEST_BYTES: usize = 256;

/// The device.
pub struct Entropy {
    source: File,
}

impl Entropy {
    /// A device that reads from `source`, such as `/dev/urandom`.
    pub fn new(source: File) -> Self {
        Self { source }
    }
}

fn fill(source: &mut File, memory: &GuestMemory, chain: Chain) -> u32 {
    let mut written = 0;
    for descriptor in chain.writable() {
        let mut bytes = [0; REQUEST_BYTES];
        let wanted = (descriptor.len() as usize).min(REQUEST_BYTES - written);
        if wanted == 0 {
            continue;
        }
        // A source that fails yields nothing, which a driver must bear.
        let Ok(read) = source.read(&mut bytes[..wanted]) else {
            break;
        };
        if memory
            .write_slice(&bytes[..read], descriptor.addr())
            .is_err()
        {
            break;
        }
        written += read;
        if written == REQUEST_BYTES || read < wanted {
            break;
        }
    }
    written as u32
}

impl VirtioDevice for Entropy {
    fn name(&self) -> &str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let memory = queues.memory();
        queues.drain(index, |chain| {
            let written = fill(&mut self.source, memory, chain);
            Ok(Served {
                written,
                moved: u64::from(written),
            })
        })
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests;
