//! From the tap to the driver.
//!
//! A frame is read straight into the buffers the driver has given, as many as it
//! takes, and what they do not hold into a spare buffer: so no frame is read before
//! there is a place for its beginning, none is lost because there is none yet for
//! its end, and its length need not be known before.

use std::collections::VecDeque;

use vm_memory::GuestAddress;

use super::super::limiter::Limiter;
use super::super::queues::{BYTES_PER_TURN, DeviceFault, Drained, Queues};
use super::frame::{self, MAX_FRAME_BYTES, MAX_PIECES};
use super::tap::{self, Gone, HEADER_BYTES, Tap, Transfer};
use crate::block::buffers::Buffers;
use crate::memory::GuestMemory;

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// A tap, and whether it may have frames.
#[derive(Debug)]
pub struct Source {
    /// Where frames come from.
    pub tap: Tap,
    /// Set by the watch, cleared by a read that finds nothing.
    pub readable: bool,
}

/// What the driver can take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// A frame may lie in several buffers (`VIRTIO_NET_F_MRG_RXBUF`).
    pub mergeable: bool,
    /// The longest frame to expect, with its header. Longer ones are taken too, at
    /// the price of a copy.
    pub usual_frame_bytes: usize,
}

/// A buffer of the driver's.
#[derive(Debug)]
struct Room {
    head: u16,
    bytes: usize,
    pieces: usize,
}

/// A frame that the driver has not been told of, of which `bytes - direct` are in the
/// spare buffer.
#[derive(Debug, Clone, Copy)]
struct Partial {
    bytes: usize,
    direct: usize,
}

/// One receive queue.
#[derive(Debug)]
pub struct Receiver {
    queue: usize,
    /// Buffers taken from the driver that hold nothing yet.
    rooms: VecDeque<Room>,
    /// Where they are, one after another.
    pieces: VecDeque<(GuestAddress, usize)>,
    /// How much they hold.
    room_bytes: usize,
    /// Not touched, and so not in memory, before a frame needs it.
    spare: Box<[u8]>,
    partial: Option<Partial>,
    /// Whether the driver shall ring when it gives buffers.
    wants_doorbell: bool,
    /// Frames that were lost here.
    pub dropped: u64,
    /// The buffers of one frame, kept for its capacity.
    used: Vec<(u16, u32)>,
}

impl Receiver {
    /// For the queue `queue`.
    pub fn new(queue: usize) -> Self {
        Self {
            queue,
            rooms: VecDeque::new(),
            pieces: VecDeque::new(),
            room_bytes: 0,
            spare: vec![0; MAX_FRAME_BYTES].into(),
            partial: None,
            wants_doorbell: true,
            dropped: 0,
            used: Vec::new(),
        }
    }

    /// Forgets all that belongs to the driver.
    pub fn reset(&mut self) {
        self.rooms.clear();
        self.pieces.clear();
        self.room_bytes = 0;
        self.partial = None;
        self.wants_doorbell = true;
    }

    /// Moves frames while there are both frames and buffers, and `limiter` lets them
    /// pass. It asks for a frame that is in the buffers already, as its length is not
    /// known before, and which the driver is not told of as long as it must wait; those
    /// after it stay in the tap, whose queue drops what is too much. Returns whether to
    /// come back without waiting, and whether a tap is gone.
    pub fn receive<'s>(
        &mut self,
        sources: impl Iterator<Item = &'s mut Source>,
        acceptance: Acceptance,
        mut limiter: Option<&mut Limiter>,
        queues: &mut Queues,
    ) -> Result<(Drained, Option<Gone>), DeviceFault> {
        let size = usize::from(queues.size(self.queue));
        if size == 0 {
            // The driver has taken the queue away, and its buffers with it.
            self.reset();
            return Ok((Drained::Empty, None));
        }
        let mut sources = sources.peekable();
        let mut gone = None;
        let mut used = false;
        let (mut frames, mut bytes) = (size, BYTES_PER_TURN);
        let drained = loop {
            if frames == 0 || bytes == 0 {
                break Drained::Again;
            }
            // Each turn counts, also one that finds nothing: a driver may move its
            // index forth and back.
            frames -= 1;
            while sources.next_if(|source| !source.readable).is_some() {}
            if self.partial.is_none() && sources.peek().is_none() {
                break Drained::Empty;
            }
            if !self.gather(acceptance, queues)? {
                if self.partial.is_some() && self.rooms.len() >= size {
                    // The driver has given all its queue holds.
                    self.partial = None;
                    self.dropped += 1;
                    continue;
                }
                self.wants_doorbell = true;
                if queues.want_doorbell(self.queue, true)? {
                    continue;
                }
                break Drained::Empty;
            }
            let frame = match (self.partial.take(), sources.peek_mut()) {
                (Some(partial), _) => Some(self.complete(partial, queues.memory())?),
                (None, Some(source)) => match self.read(source, acceptance, queues.memory())? {
                    Ok(frame) => frame,
                    Err(error) => {
                        source.readable = false;
                        gone = Some(error);
                        continue;
                    }
                },
                (None, None) => None,
            };
            if let Some(frame) = frame {
                let cost = frame.saturating_sub(HEADER_BYTES) as u64;
                if limiter.as_mut().is_some_and(|limiter| !limiter.admit(cost)) {
                    self.partial = Some(Partial {
                        bytes: frame,
                        direct: frame,
                    });
                    // The limiter's timer tells when to go on.
                    break Drained::Empty;
                }
                self.give(frame, queues)?;
                used = true;
                bytes = bytes.saturating_sub(frame as u64);
            }
        };
        if used {
            queues.notify(self.queue)?;
        }
        Ok((drained, gone))
    }

    /// Takes buffers from the driver until the next frame will fit, or there are no
    /// more. Returns whether there are enough to go on.
    fn gather(&mut self, acceptance: Acceptance, queues: &mut Queues) -> Result<bool, DeviceFault> {
        let least = match (self.partial, acceptance.mergeable) {
            (Some(partial), _) => partial.bytes,
            (None, _) => HEADER_BYTES,
        };
        let wanted = match acceptance.mergeable {
            true => acceptance.usual_frame_bytes.max(least),
            false => HEADER_BYTES,
        };
        while self.room_bytes < wanted {
            let Some(chain) = queues.pop(self.queue)? else {
                break;
            };
            if std::mem::take(&mut self.wants_doorbell) {
                queues.want_doorbell(self.queue, false)?;
            }
            let head = chain.head_index();
            let before = self.pieces.len();
            let extent = frame::walk(chain, self.queue, true, |address, length| {
                self.pieces.push_back((address, length));
            })?;
            let fault = |reason| DeviceFault::Chain {
                queue: self.queue,
                reason,
            };
            if extent.bytes < HEADER_BYTES as u64 {
                return Err(fault("a buffer for frames without room for a header"));
            }
            if extent.shattered {
                return Err(fault("a buffer for frames in too many pieces"));
            }
            let bytes = usize::try_from(extent.bytes)
                .map_err(|_| fault("a buffer for frames of impossible length"))?;
            self.rooms.push_back(Room {
                head,
                bytes,
                pieces: self.pieces.len() - before,
            });
            self.room_bytes = self.room_bytes.saturating_add(bytes);
        }
        Ok(self.room_bytes >= least)
    }

    /// The first `count` buffers.
    fn buffers(&self, count: usize, memory: &GuestMemory) -> Result<Buffers, DeviceFault> {
        let pieces = self.rooms.iter().take(count).map(|room| room.pieces).sum();
        let mut buffers = Buffers::default();
        for (address, length) in self.pieces.iter().take(pieces) {
            buffers
                .push(memory, *address, *length)
                .map_err(|_| DeviceFault::Chain {
                    queue: self.queue,
                    reason: "a buffer for frames lies outside guest memory",
                })?;
        }
        Ok(buffers)
    }

    /// How many of the buffers one system call can fill: more pieces than that are
    /// filled by way of the spare buffer.
    fn rooms_of_one_call(&self) -> usize {
        let mut pieces = 0;
        let fits = |room: &&Room| {
            pieces += room.pieces;
            pieces <= MAX_PIECES
        };
        // One always fits: `gather` takes no larger ones.
        self.rooms.iter().take_while(fits).count()
    }

    /// Reads a frame. Returns its length if it is whole.
    fn read(
        &mut self,
        source: &mut Source,
        acceptance: Acceptance,
        memory: &GuestMemory,
    ) -> Result<Result<Option<usize>, Gone>, DeviceFault> {
        let count = match acceptance.mergeable {
            true => self.rooms_of_one_call(),
            false => 1,
        };
        let buffers = self.buffers(count, memory)?;
        let room = usize::try_from(buffers.bytes()).unwrap_or(usize::MAX);
        let bytes = match tap::received(buffers.receive_frame(&source.tap, &mut self.spare)) {
            Ok(Transfer::Frame(bytes)) => bytes,
            Ok(Transfer::Dropped) => {
                self.dropped += 1;
                return Ok(Ok(None));
            }
            Ok(Transfer::Nothing) => {
                source.readable = false;
                return Ok(Ok(None));
            }
            Err(gone) => return Ok(Err(gone)),
        };
        // A frame that even the spare buffer did not hold was cut.
        let cut = bytes >= room.saturating_add(self.spare.len());
        let lost = bytes > room && !acceptance.mergeable;
        if bytes < HEADER_BYTES || cut || lost {
            self.dropped += 1;
            return Ok(Ok(None));
        }
        if bytes > room {
            let direct = room;
            self.partial = Some(Partial { bytes, direct });
            return Ok(Ok(None));
        }
        Ok(Ok(Some(bytes)))
    }

    /// Copies the rest of a frame to where it goes on.
    fn complete(&self, partial: Partial, memory: &GuestMemory) -> Result<usize, DeviceFault> {
        let Partial { bytes, direct } = partial;
        let rest = self.spare.get(..bytes.saturating_sub(direct));
        self.buffers(self.rooms.len(), memory)?
            .copy_at(direct, rest.unwrap_or_default());
        Ok(bytes)
    }

    /// Gives the first buffers, which hold a frame of `bytes`, back to the driver.
    fn give(&mut self, bytes: usize, queues: &mut Queues) -> Result<(), DeviceFault> {
        self.used.clear();
        let mut left = bytes;
        let mut pieces = 0;
        for room in &self.rooms {
            let written = left.min(room.bytes);
            // At most MAX_FRAME_BYTES.
            self.used.push((room.head, written as u32));
            self.room_bytes = self.room_bytes.saturating_sub(room.bytes);
            pieces += room.pieces;
            left -= written;
            if left == 0 {
                break;
            }
        }
        let count = self.used.len();
        // At most the size of a queue.
        let number = (count as u16).to_le_bytes();
        self.buffers(1, queues.memory())?
            .copy_at(NUM_BUFFERS, &number);
        self.rooms.drain(..count);
        self.pieces.drain(..pieces);
        queues.push_used_together(self.queue, &self.used)
    }
}
