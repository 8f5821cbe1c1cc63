//! From the driver to the tap.

use super::super::limiter::Limiter;
use super::super::queues::{Chain, DeviceFault, Drained, Queues, Served, Taken};
use super::frame::{self, MAX_FRAME_BYTES};
use super::tap::{self, Gone, HEADER_BYTES, Tap, Transfer};
use crate::block::buffers::Buffers;
use crate::memory::GuestMemory;

/// Sends what the driver has put into queue `queue`, each frame by one system call
/// from where it is. What `limiter` holds back stays in the queue; there is none where
/// there are no limits. Returns how many were dropped, and whether the tap is gone.
pub fn transmit(
    queue: usize,
    tap: Option<&Tap>,
    mut limiter: Option<&mut Limiter>,
    dropped: &mut u64,
    queues: &mut Queues,
) -> Result<(Drained, Option<Gone>), DeviceFault> {
    let memory = queues.memory();
    let mut tap = tap;
    let mut gone = None;
    let drained = queues.take(queue, |chain| {
        let (bytes, buffers) = collect(memory, chain, queue)?;
        // What is dropped is paid for too, so that it takes no more of the host.
        let cost = bytes.saturating_sub(HEADER_BYTES as u64);
        if limiter.as_mut().is_some_and(|limiter| !limiter.admit(cost)) {
            return Ok(Taken::Refused);
        }
        let transfer = match (tap, buffers) {
            (Some(tap), Some(buffers)) => tap::sent(buffers.send_frame(tap)),
            _ => Ok(Transfer::Dropped),
        };
        match transfer {
            Ok(Transfer::Frame(_)) => {}
            Ok(_) => *dropped += 1,
            Err(error) => {
                *dropped += 1;
                tap = None;
                gone = Some(error);
            }
        }
        Ok(Taken::Used(Served {
            written: 0,
            moved: bytes,
        }))
    })?;
    Ok((drained, gone))
}

/// The frame in `chain`, or nothing if it is one that nobody can send. What its
/// header says is for the kernel to judge, which copies it once: whatever it makes
/// of nonsense, it makes of the same bytes it has checked.
fn collect<'m>(
    memory: &'m GuestMemory,
    chain: Chain<'m>,
    queue: usize,
) -> Result<(u64, Option<Buffers>), DeviceFault> {
    let mut buffers = Buffers::default();
    let mut outside = false;
    let extent = frame::walk(chain, queue, false, |address, length| {
        outside |= buffers.push(memory, address, length).is_err();
    })?;
    if outside {
        return Err(DeviceFault::Chain {
            queue,
            reason: "a frame to send lies outside guest memory",
        });
    }
    let possible = !extent.shattered && extent.bytes <= MAX_FRAME_BYTES as u64;
    // What is dropped unseen costs no more than what is sent.
    Ok((
        extent.bytes.min(MAX_FRAME_BYTES as u64),
        possible.then_some(buffers),
    ))
}
