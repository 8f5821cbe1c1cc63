//! One request: its parts in guest memory, and what they ask for.

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::queues::Chain;
use super::{
    MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SEGMENTS,
    REQUEST_MAX_BYTES, SECTOR_BYTES,
};
use crate::block::buffers::Buffers;
use crate::block::{Operation, Range};
use crate::memory::GuestMemory;

/// `struct virtio_blk_req`: type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const SEGMENT_BYTES: usize = 16;
/// Pieces of data in one request: a chain of the largest queue (section
/// 2.7.5.3.1), where a piece may lie across the border of two regions of memory.
const MAX_PIECES: usize = 512;

/// What the driver is told of a request that was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `VIRTIO_BLK_S_IOERR`.
    Failed,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

/// What a request asks for.
#[derive(Debug)]
pub enum Command {
    /// For the backend.
    Operation(Operation),
    /// The disk's identity, in so many bytes at this address.
    Identity(GuestAddress, usize),
}

/// What a request is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// How large it is.
    pub size_bytes: u64,
    /// Whether writing is refused.
    pub read_only: bool,
    /// The features that the driver has acknowledged.
    pub features: u64,
}

/// A request, its header copied out of guest memory once.
pub struct Request {
    kind: u32,
    sector: u64,
    /// Data the device reads, after the header.
    readable: Buffers,
    first_readable: Option<(GuestAddress, usize)>,
    /// Room the device writes, before the status byte.
    writable: Buffers,
    first_writable: Option<(GuestAddress, usize)>,
    /// Where the status byte goes.
    pub status: GuestAddress,
}

impl Request {
    /// The driver frames descriptors as it likes (section 2.7.4.1), except that
    /// here, as in every driver there is, the header is the first descriptor's
    /// beginning, the status byte the last one's end, and the segments of a
    /// discard lie in one descriptor.
    pub fn parse(memory: &GuestMemory, chain: Chain) -> Result<Self, &'static str> {
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
        let mut readable = Data::default();
        let rest = first.len() as usize - HEADER_BYTES;
        let after_header = first
            .addr()
            .0
            .checked_add(HEADER_BYTES as u64)
            .ok_or(outside)?;
        readable.push(memory, GuestAddress(after_header), rest)?;
        let mut writable = Data::default();
        // The last writable descriptor seen so far: its end may be the status.
        let mut last: Option<(GuestAddress, usize)> = None;
        for descriptor in descriptors {
            let piece = (descriptor.addr(), descriptor.len() as usize);
            if !descriptor.is_write_only() {
                if last.is_some() {
                    return Err("a request with readable data after writable data");
                }
                readable.push(memory, piece.0, piece.1)?;
                continue;
            }
            if let Some((address, length)) = last.replace(piece) {
                writable.push(memory, address, length)?;
            }
        }
        let (address, length) = last.ok_or("a request without a status byte")?;
        let before_status = length
            .checked_sub(1)
            .ok_or("a request with an empty status descriptor")?;
        writable.push(memory, address, before_status)?;
        let status = address.0.checked_add(before_status as u64).ok_or(outside)?;
        Ok(Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes(sector),
            readable: readable.buffers,
            first_readable: readable.first,
            writable: writable.buffers,
            first_writable: writable.first,
            status: GuestAddress(status),
        })
    }

    /// How many bytes the driver asked to move, in either direction.
    pub fn bytes(&self) -> u64 {
        self.readable.bytes().max(self.writable.bytes())
    }

    /// What it asks of `disk`.
    pub fn command(self, memory: &GuestMemory, disk: Disk) -> Result<Command, Refusal> {
        let operation = match self.kind {
            VIRTIO_BLK_T_IN => {
                let offset = disk.check(self.sector, self.writable.bytes())?;
                Operation::Read(offset, self.writable)
            }
            VIRTIO_BLK_T_OUT if disk.read_only => return Err(Refusal::Failed),
            VIRTIO_BLK_T_OUT => {
                let offset = disk.check(self.sector, self.readable.bytes())?;
                Operation::Write(offset, self.readable)
            }
            VIRTIO_BLK_T_FLUSH => Operation::Flush,
            VIRTIO_BLK_T_GET_ID => {
                let (address, length) = self.first_writable.ok_or(Refusal::Failed)?;
                return Ok(Command::Identity(address, length));
            }
            VIRTIO_BLK_T_DISCARD if disk.has(VIRTIO_BLK_F_DISCARD) => {
                let segments = self.segments(memory, MAX_DISCARD_SEGMENTS)?;
                let ranges = segments
                    .iter()
                    .map(|segment| segment.discard(disk))
                    .collect::<Result<_, _>>()?;
                Operation::Discard(ranges)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if disk.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                match self.segments(memory, MAX_WRITE_ZEROES_SEGMENTS)?[..] {
                    [segment] => segment.write_zeroes(disk)?,
                    _ => return Err(Refusal::Failed),
                }
            }
            _ => return Err(Refusal::Unsupported),
        };
        Ok(Command::Operation(operation))
    }

    /// The segments of a discard, 1 to `max`, copied once.
    fn segments(&self, memory: &GuestMemory, max: u32) -> Result<Vec<Segment>, Refusal> {
        let bytes = self.readable.bytes() as usize;
        let (address, length) = self.first_readable.ok_or(Refusal::Failed)?;
        let whole = bytes == length && bytes.is_multiple_of(SEGMENT_BYTES);
        if !whole || bytes > max as usize * SEGMENT_BYTES {
            return Err(Refusal::Failed);
        }
        let mut copy = vec![0; bytes];
        memory
            .read_slice(&mut copy, address)
            .map_err(|_| Refusal::Failed)?;
        let (segments, _) = copy.as_chunks::<SEGMENT_BYTES>();
        Ok(segments.iter().map(Segment::parse).collect())
    }
}

/// Pieces of memory, and where the first of them is.
#[derive(Default)]
struct Data {
    buffers: Buffers,
    first: Option<(GuestAddress, usize)>,
}

impl Data {
    fn push(
        &mut self,
        memory: &GuestMemory,
        address: GuestAddress,
        length: usize,
    ) -> Result<(), &'static str> {
        if length == 0 {
            return Ok(());
        }
        self.buffers
            .push(memory, address, length)
            .map_err(|_| "a request's data lies outside guest memory")?;
        if self.buffers.pieces() > MAX_PIECES {
            return Err("a request of more pieces than a queue has descriptors");
        }
        self.first.get_or_insert((address, length));
        Ok(())
    }
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Debug, Clone, Copy)]
struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Segment {
    fn parse(bytes: &[u8; SEGMENT_BYTES]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes(flags),
        }
    }

    /// Section 5.2.6.2: no flag is for a discard.
    fn discard(self, disk: Disk) -> Result<Range, Refusal> {
        if self.flags != 0 {
            return Err(Refusal::Unsupported);
        }
        self.range(disk, MAX_DISCARD_SECTORS)
    }

    fn write_zeroes(self, disk: Disk) -> Result<Operation, Refusal> {
        if self.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Refusal::Unsupported);
        }
        Ok(Operation::WriteZeroes {
            range: self.range(disk, MAX_WRITE_ZEROES_SECTORS)?,
            unmap: self.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        })
    }

    fn range(self, disk: Disk, max_sectors: u32) -> Result<Range, Refusal> {
        if self.sectors > max_sectors {
            return Err(Refusal::Failed);
        }
        let length = u64::from(self.sectors) * SECTOR_BYTES;
        let offset = disk.offset(self.sector, length)?;
        Ok(Range { offset, length })
    }
}

impl Disk {
    fn has(self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// The byte offset of `sector`, if `bytes` from there on are whole sectors
    /// of this disk and no more than one request may move.
    pub fn check(self, sector: u64, bytes: u64) -> Result<u64, Refusal> {
        if bytes > REQUEST_MAX_BYTES || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refusal::Failed);
        }
        self.offset(sector, bytes)
    }

    fn offset(self, sector: u64, bytes: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::Failed)?;
        let end = offset.checked_add(bytes).ok_or(Refusal::Failed)?;
        if end > self.size_bytes {
            return Err(Refusal::Failed);
        }
        Ok(offset)
    }
}
