//! virtio-vsock (virtio 1.3, section 5.10): stream connections between the
//! guest and Unix sockets that the agent serves.
//!
//! [`channel`] carries the host ends to and from the agent, [`connection`] is
//! one stream with its credit, [`muxer`] is all of them. This file moves
//! packets between the muxer and the virtqueues.

pub mod channel;
pub mod connection;
pub mod muxer;
pub mod packet;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

use super::queues::{Chain, DeviceFault, Drained, Queues, Served};
use super::{VirtioDevice, read_config_bytes};
use crate::memory::GuestMemory;
use muxer::Muxer;
use packet::Header;

/// Queue indices (section 5.10.2).
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Drivers refuse queues shorter than their own, even for events there are none of.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// The largest payload of one packet in either direction, and so the most that
/// one packet makes the device copy. Linux sends at most 64 KiB.
const MAX_PAYLOAD_BYTES: u32 = 64 << 10;

/// The device.
pub struct Vsock {
    config: [u8; 8],
    muxer: Muxer,
}

impl Vsock {
    /// A device whose guest has context id `guest_cid` and whose connections
    /// end at the agent, through `channel`.
    pub fn new(guest_cid: u64, channel: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            config: guest_cid.to_le_bytes(),
            muxer: Muxer::new(guest_cid, channel)?,
        })
    }

    /// Takes packets from the driver.
    fn transmit(&mut self, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        // A driver that sends but takes no answers fills a bounded list; its
        // packets wait until it has taken some and rings for that.
        if self.muxer.answers_full() {
            return Ok(Drained::Empty);
        }
        let memory = queues.memory();
        let muxer = &mut self.muxer;
        queues.drain(TX, |chain| take_packet(memory, chain, muxer))
    }

    /// Fills the driver's buffers with packets while there are both.
    fn receive(&mut self, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let memory = queues.memory();
        let mut budget = QUEUE_SIZES[RX];
        let mut used = false;
        let result = loop {
            if !self.muxer.has_packets() {
                break Drained::Empty;
            }
            // Each turn counts, also one that finds nothing: a driver may move
            // its index forth and back.
            let Some(left) = budget.checked_sub(1) else {
                break Drained::Again;
            };
            budget = left;
            let Some(chain) = queues.pop(RX)? else {
                // Only now is the doorbell worth an exit.
                if queues.want_doorbell(RX, true)? {
                    continue;
                }
                break Drained::Empty;
            };
            queues.want_doorbell(RX, false)?;
            let head = chain.head_index();
            match give_packet(memory, chain, &mut self.muxer)? {
                0 => {
                    queues.unpop(RX);
                }
                written => {
                    queues.push_used(RX, head, written)?;
                    used = true;
                }
            }
        };
        if used {
            queues.notify(RX)?;
        }
        Ok(result)
    }

    fn exchange(&mut self, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let made_room = self.receive(queues)?;
        let sent = self.transmit(queues)?;
        let answered = self.receive(queues)?;
        let more = [made_room, sent, answered].contains(&Drained::Again);
        Ok(if more { Drained::Again } else { Drained::Empty })
    }
}

fn take_packet(
    memory: &GuestMemory,
    mut chain: Chain,
    muxer: &mut Muxer,
) -> Result<Served, DeviceFault> {
    let packet =
        VsockPacket::from_tx_virtq_chain(memory, &mut chain, MAX_PAYLOAD_BYTES).map_err(|_| {
            DeviceFault::Chain {
                queue: TX,
                reason: "not a packet of at most 64 KiB in readable memory",
            }
        })?;
    let data = packet.data_slice();
    muxer.take(Header::of(&packet), data);
    Ok(Served {
        written: 0,
        moved: data.map_or(0, |data| data.len() as u64),
    })
}

/// Returns how many bytes of the chain were filled; 0 if there was no packet.
fn give_packet(
    memory: &GuestMemory,
    mut chain: Chain,
    muxer: &mut Muxer,
) -> Result<u32, DeviceFault> {
    let bad_chain = |_| DeviceFault::Chain {
        queue: RX,
        reason: "not a buffer for a packet of at most 64 KiB in writable memory",
    };
    let mut packet = VsockPacket::from_rx_virtq_chain(memory, &mut chain, MAX_PAYLOAD_BYTES)
        .map_err(bad_chain)?;
    // Without room for data a connection with nothing but data would never be
    // served, and never leave the line.
    let room = packet.data_slice().ok_or(DeviceFault::Chain {
        queue: RX,
        reason: "a buffer without room for data",
    })?;
    let Some(header) = muxer.next_packet(room) else {
        return Ok(0);
    };
    packet
        .set_header_from_raw(&header.to_bytes())
        .map_err(bad_chain)?;
    Ok(PKT_HEADER_SIZE as u32 + header.length)
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
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

    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        match index {
            RX | TX => self.exchange(queues),
            // The driver's event buffers stay with the device: it has no
            // transport reset to report.
            EVENT => Ok(Drained::Empty),
            _ => Ok(Drained::Empty),
        }
    }

    fn reset(&mut self) {
        self.muxer.reset();
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.muxer.as_fd())
    }

    fn process_backend(&mut self, queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        self.muxer.poll(queues.is_some());
        if let Some(queues) = queues
            && self.exchange(queues)? == Drained::Again
        {
            self.muxer.wake_again();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
