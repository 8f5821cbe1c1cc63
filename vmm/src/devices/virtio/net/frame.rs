//! Where in guest memory a frame is, or may go.

use vm_memory::GuestAddress;

use super::super::queues::{Chain, DeviceFault};

/// The longest frame there is, with its header: an IP packet of 64 KiB in an
/// Ethernet frame with two VLAN tags (virtio 1.3, section 5.1.6.3.1, has 65562
/// without them).
pub const MAX_FRAME_BYTES: usize = 12 + 14 + 8 + 65535;

/// More than any driver cuts a frame into, and less than one system call takes
/// (`IOV_MAX`). An indirect table might have 65535.
pub const MAX_PIECES: usize = 512;

/// What a chain of descriptors points to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The sum of the lengths.
    pub bytes: u64,
    /// Whether there are more than [`MAX_PIECES`] pieces; the rest was not looked
    /// at.
    pub shattered: bool,
}

/// Hands each piece of `chain` that is not empty to `take`. All must be writable,
/// or none.
pub fn walk(
    chain: Chain,
    queue: usize,
    writable: bool,
    mut take: impl FnMut(GuestAddress, usize),
) -> Result<Extent, DeviceFault> {
    let fault = |reason| DeviceFault::Chain { queue, reason };
    let mut extent = Extent::default();
    let mut ended = false;
    for (descriptor, index) in chain.zip(0..) {
        if index == MAX_PIECES {
            extent.shattered = true;
            return Ok(extent);
        }
        if descriptor.is_write_only() != writable {
            return Err(fault(match writable {
                true => "a buffer for frames that is not writable",
                false => "a frame to send in writable memory",
            }));
        }
        ended = !descriptor.has_next();
        let length = descriptor.len() as usize;
        if length > 0 {
            extent.bytes += length as u64;
            take(descriptor.addr(), length);
        }
    }
    // A loop, a descriptor past the table, a table outside memory.
    if !ended {
        return Err(fault("a chain of descriptors that has no end"));
    }
    Ok(extent)
}
