//! virtio-blk (virtio 1.3, section 5.2).

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddress};

use super::queues::{Chain, DeviceFault, Drained, Queues, Served};
use super::{VirtioDevice, read_config_bytes};
use crate::block::BlockBackend;
use crate::block::buffers::Buffers;
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [256];
const SECTOR_BYTES: u64 = 512;
/// `struct virtio_blk_req`: type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// Data pieces in one request: a queue's worth less the header and the status.
const SEG_MAX: u32 = 254;
/// Bytes in one piece.
const SIZE_MAX: u32 = 64 << 10;
/// Data in one request, as a driver that keeps to both may ask for. More would
/// keep other devices waiting.
const REQUEST_MAX_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Offsets into `struct virtio_blk_config`.
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SIZE_MAX: usize = 8;
const CONFIG_SEG_MAX: usize = 12;
const CONFIG_BYTES: usize = 60;

/// The device's identity, padded with zeroes.
pub type Serial = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// The device.
pub struct Block {
    name: String,
    serial: Serial,
    config: [u8; CONFIG_BYTES],
    backend: Box<dyn BlockBackend>,
}

impl Block {
    /// A disk called `name` in events, that shows `backend` to the guest.
    pub fn new(name: String, serial: Serial, backend: Box<dyn BlockBackend>) -> Self {
        let mut config = [0; CONFIG_BYTES];
        let capacity = backend.size_bytes() / SECTOR_BYTES;
        config[CONFIG_CAPACITY..][..8].copy_from_slice(&capacity.to_le_bytes());
        config[CONFIG_SIZE_MAX..][..4].copy_from_slice(&SIZE_MAX.to_le_bytes());
        config[CONFIG_SEG_MAX..][..4].copy_from_slice(&SEG_MAX.to_le_bytes());
        Self {
            name,
            serial,
            config,
            backend,
        }
    }

    /// Serves one request. What is written includes the status.
    fn serve(&self, memory: &GuestMemory, chain: Chain) -> Result<Served, DeviceFault> {
        let request = Request::parse(memory, chain)
            .map_err(|reason| DeviceFault::Chain { queue: 0, reason })?;
        let status_address = request.status;
        let moved = request.readable.bytes().max(request.writable.bytes());
        let (status, written) = match self.execute(memory, request) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Failed) => (VIRTIO_BLK_S_IOERR, 0),
        };
        memory
            .write_obj(status as u8, status_address)
            .map_err(|_| DeviceFault::Chain {
                queue: 0,
                reason: "the status byte lies outside guest memory",
            })?;
        Ok(Served {
            written: written + 1,
            moved,
        })
    }

    fn execute(&self, memory: &GuestMemory, request: Request) -> Result<u32, Refusal> {
        let Request {
            kind,
            sector,
            readable,
            writable,
            ..
        } = request;
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.check_range(sector, writable.bytes())?;
                // At most REQUEST_MAX_BYTES.
                let bytes = writable.bytes() as u32;
                self.backend.read(offset, writable)?;
                Ok(bytes)
            }
            VIRTIO_BLK_T_OUT => {
                let offset = self.check_range(sector, readable.bytes())?;
                self.backend.write(offset, readable)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                self.backend.flush()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let Some((address, length)) = request.first_writable else {
                    return Err(Refusal::Failed);
                };
                let length = length.min(self.serial.len());
                memory
                    .write_slice(&self.serial[..length], address)
                    .map_err(|_| Refusal::Failed)?;
                Ok(length as u32)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    /// The byte offset of `sector`, if `bytes` from there on are whole sectors
    /// of this disk and no more than one request may have.
    fn check_range(&self, sector: u64, bytes: u64) -> Result<u64, Refusal> {
        if bytes > REQUEST_MAX_BYTES {
            return Err(Refusal::Failed);
        }
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::Failed)?;
        let end = offset.checked_add(bytes).ok_or(Refusal::Failed)?;
        if !bytes.is_multiple_of(SECTOR_BYTES) || end > self.backend.size_bytes() {
            return Err(Refusal::Failed);
        }
        Ok(offset)
    }
}

/// What the driver is told of a request that was not done.
enum Refusal {
    Failed,
    Unsupported,
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Self::Failed
    }
}

/// A request, its header copied out of guest memory once.
struct Request<'m> {
    kind: u32,
    sector: u64,
    /// Data the device reads, after the header.
    readable: Buffers<'m>,
    /// Room the device writes, before the status byte.
    writable: Buffers<'m>,
    first_writable: Option<(GuestAddress, usize)>,
    status: GuestAddress,
}

impl<'m> Request<'m> {
    /// The driver frames descriptors as it likes (section 2.7.4.1), except that
    /// here, as in every driver there is, the header is the first descriptor's
    /// beginning and the status byte the last one's end.
    fn parse(memory: &'m GuestMemory, chain: Chain<'m>) -> Result<Self, &'static str> {
        let mut descriptors = chain;
        let first = descriptors.next().ok_or("a request without descriptors")?;
        if first.is_write_only() || (first.len() as usize) < HEADER_BYTES {
            return Err("a request without a header");
        }
        let mut header = [0; HEADER_BYTES];
        memory
            .read_slice(&mut header, first.addr())
            .map_err(|_| "a request's header lies outside guest memory")?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;

        let outside = "a request's data lies outside guest memory";
        let mut readable = Buffers::default();
        let rest = first.len() as usize - HEADER_BYTES;
        let after_header = first
            .addr()
            .0
            .checked_add(HEADER_BYTES as u64)
            .ok_or(outside)?;
        readable
            .push(memory, GuestAddress(after_header), rest)
            .map_err(|_| outside)?;
        let mut writable = Buffers::default();
        let mut first_writable = None;
        // The last writable descriptor seen so far: its end may be the status.
        let mut last: Option<(GuestAddress, usize)> = None;
        for descriptor in descriptors {
            let piece = (descriptor.addr(), descriptor.len() as usize);
            if !descriptor.is_write_only() {
                if last.is_some() {
                    return Err("a request with readable data after writable data");
                }
                readable
                    .push(memory, piece.0, piece.1)
                    .map_err(|_| outside)?;
                continue;
            }
            if let Some((address, length)) = last.replace(piece) {
                first_writable.get_or_insert((address, length));
                writable
                    .push(memory, address, length)
                    .map_err(|_| outside)?;
            }
        }
        let (address, length) = last.ok_or("a request without a status byte")?;
        let before_status = length
            .checked_sub(1)
            .ok_or("a request with an empty status descriptor")?;
        if before_status > 0 {
            first_writable.get_or_insert((address, before_status));
            writable
                .push(memory, address, before_status)
                .map_err(|_| outside)?;
        }
        let status = address.0.checked_add(before_status as u64).ok_or(outside)?;
        Ok(Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes(sector),
            readable,
            writable,
            first_writable,
            status: GuestAddress(status),
        })
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let read_only = u64::from(self.backend.read_only()) << VIRTIO_BLK_F_RO;
        1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | read_only
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let memory = queues.memory();
        queues.drain(index, |chain| self.serve(memory, chain))
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests;
