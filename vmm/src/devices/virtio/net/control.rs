//! The control queue (virtio 1.3, section 5.1.6.5), of which there is one command:
//! how many queue pairs the driver uses.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::queues::{Chain, DeviceFault, Drained, Queues, Served};
use super::frame::MAX_PIECES;
use crate::memory::GuestMemory;

/// Class, command, number of pairs.
const COMMAND_BYTES: usize = 4;

/// Answers the commands in queue `queue`. `set_pairs` is given a number that lies
/// within `1..=max_pairs`.
pub fn answer(
    queue: usize,
    max_pairs: usize,
    mut set_pairs: impl FnMut(usize),
    queues: &mut Queues,
) -> Result<Drained, DeviceFault> {
    let memory = queues.memory();
    queues.drain(queue, |chain| {
        let (command, acknowledgement) =
            parse(memory, chain).map_err(|reason| DeviceFault::Chain { queue, reason })?;
        let pairs = command
            .and_then(pairs_of)
            .filter(|pairs| (1..=max_pairs).contains(pairs));
        let answer = match pairs {
            Some(pairs) => {
                set_pairs(pairs);
                VIRTIO_NET_OK
            }
            None => VIRTIO_NET_ERR,
        };
        memory
            .write_obj(answer as u8, acknowledgement)
            .map_err(|_| DeviceFault::Chain {
                queue,
                reason: "a command's acknowledgement lies outside guest memory",
            })?;
        Ok(Served {
            written: 1,
            moved: COMMAND_BYTES as u64,
        })
    })
}

fn pairs_of([class, command, low, high]: [u8; COMMAND_BYTES]) -> Option<usize> {
    let known = u32::from(class) == VIRTIO_NET_CTRL_MQ
        && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    known.then(|| u16::from_le_bytes([low, high]).into())
}

/// Copies a command out of guest memory, once; `None` if it is longer or shorter
/// than the one that is known here. Also returns where the answer goes.
fn parse(
    memory: &GuestMemory,
    chain: Chain,
) -> Result<(Option<[u8; COMMAND_BYTES]>, GuestAddress), &'static str> {
    let mut command = [0; COMMAND_BYTES];
    let mut length = 0_usize;
    for (descriptor, index) in chain.zip(0..) {
        if index == MAX_PIECES {
            return Err("a command in too many pieces");
        }
        let bytes = descriptor.len() as usize;
        if descriptor.is_write_only() {
            return match (bytes, length) {
                (0, _) => Err("a command without room for its acknowledgement"),
                (_, COMMAND_BYTES) => Ok((Some(command), descriptor.addr())),
                _ => Ok((None, descriptor.addr())),
            };
        }
        let room = COMMAND_BYTES.saturating_sub(length);
        let copied = bytes.min(room);
        let start = length.min(COMMAND_BYTES);
        memory
            .read_slice(&mut command[start..start + copied], descriptor.addr())
            .map_err(|_| "a command lies outside guest memory")?;
        length = length.saturating_add(bytes);
    }
    Err("a command without an acknowledgement")
}
