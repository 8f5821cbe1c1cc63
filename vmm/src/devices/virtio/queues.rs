//! A device's view of its virtqueues.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::interrupt::Interrupt;
use crate::memory::GuestMemory;
use crate::metrics::device::QueueMeter;
use crate::panics::Panic;

/// A chain of descriptors the driver made available.
pub type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// The driver did something no driver may, or the device failed: it stops and asks for
/// reset (virtio 1.3, section 2.1.1, `DEVICE_NEEDS_RESET`).
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// The rings hold what rings cannot hold, or lie outside guest memory.
    #[error("queue {queue}: {source}")]
    Queue {
        /// The queue's index.
        queue: usize,
        /// What was wrong.
        source: virtio_queue::Error,
    },
    /// The host could not do what the queues need.
    #[error("cannot {what}: {source}")]
    Host {
        /// What could not be done.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A chain's descriptors are not what the device type prescribes.
    #[error("queue {queue}: {reason}")]
    Chain {
        /// The queue's index.
        queue: usize,
        /// What was wrong.
        reason: &'static str,
    },
    /// The host has not ended what was in flight when the driver reset the device or took
    /// a queue away.
    #[error(
        "the host still works on requests from before the reset; until they end, the device \
         cannot be used"
    )]
    Unsettled,
    /// A call to the device panicked: a defect of it.
    #[error("the device panicked at {0}")]
    Panic(Panic),
    /// The same, while it was being reset.
    #[error("the device panicked while it was reset, and is dead, at {0}")]
    PanicInReset(Panic),
}

/// The queues of one device, borrowed for the length of one event.
pub struct Queues<'a> {
    queues: &'a mut [Queue],
    memory: &'a GuestMemory,
    interrupt: &'a Interrupt,
    /// [`Queues::push_used_together`] passed what the driver waits for.
    passed_used_event: bool,
    meter: Option<&'a mut QueueMeter>,
}

/// How much a device moves before others have their turn: some milliseconds'
/// worth.
pub const BYTES_PER_TURN: u64 = 16 << 20;

/// What was done with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// How many bytes the driver is told were written into it.
    pub written: u32,
    /// How many bytes it asked to move, in either direction, or had the device write.
    pub moved: u64,
}

/// What a device does with a chain it is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is done with it.
    Used(Served),
    /// It keeps it, to return it later, and moves so many bytes meanwhile.
    Kept {
        /// In either direction.
        moved: u64,
    },
    /// It cannot take it now, nor those after it.
    Refused,
}

/// What is left when [`Queues::drain`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing; the driver will ring the doorbell.
    Empty,
    /// Perhaps something: come back without waiting for the doorbell.
    Again,
}

impl<'a> Queues<'a> {
    /// Binds queues to the memory they lie in and the interrupt they raise.
    pub fn new(queues: &'a mut [Queue], memory: &'a GuestMemory, interrupt: &'a Interrupt) -> Self {
        Self {
            queues,
            memory,
            interrupt,
            passed_used_event: false,
            meter: None,
        }
    }

    /// Counts what happens to the chains.
    pub fn counted_by(self, meter: &'a mut QueueMeter) -> Self {
        Self {
            meter: Some(meter),
            ..self
        }
    }

    /// The memory that descriptors point into.
    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// Takes the next available chain of queue `index`, if there is one.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain<'a>>, DeviceFault> {
        let Some(queue) = self.queues.get_mut(index).filter(|q| q.ready()) else {
            return Ok(None);
        };
        let mut chains = queue
            .iter(self.memory)
            .map_err(|source| DeviceFault::Queue {
                queue: index,
                source,
            })?;
        Ok(chains.next())
    }

    /// Puts back the chain that [`Queues::pop`] returned last.
    pub fn unpop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.go_to_previous_position();
        }
    }

    /// Returns a chain to the driver with `written` bytes in it. The driver
    /// hears of it at the next [`Queues::notify`]. A driver that has taken the
    /// queue away meanwhile gets nothing back.
    pub fn push_used(&mut self, index: usize, head: u16, written: u32) -> Result<(), DeviceFault> {
        self.count_returned(index, &[(head, written)]);
        let memory = self.memory;
        let Some(queue) = self.ready(index) else {
            return Ok(());
        };
        queue
            .add_used(memory, head, written)
            .map_err(|source| DeviceFault::Queue {
                queue: index,
                source,
            })
    }

    /// Returns chains to the driver so that it sees all of them or none: the
    /// buffers of one packet (virtio 1.3, section 5.1.6.4.1). Each has its head
    /// and what was written into it; there are fewer than the queue has places.
    pub fn push_used_together(
        &mut self,
        index: usize,
        chains: &[(u16, u32)],
    ) -> Result<(), DeviceFault> {
        let Some(((last_head, last_written), before)) = chains.split_last() else {
            return Ok(());
        };
        self.count_returned(index, chains);
        let memory = self.memory;
        let Some(queue) = self.ready(index) else {
            return Ok(());
        };
        let outside = |source| DeviceFault::Queue {
            queue: index,
            source: virtio_queue::Error::GuestMemory(source),
        };
        let first = Wrapping(queue.next_used());
        let mut next = first;
        for (head, written) in before {
            // Flags and index, then elements of eight bytes each; `is_valid` has
            // made sure that the ring lies in memory.
            let slot = u64::from(next.0 % queue.size());
            let at = queue.used_ring().saturating_add(4 + slot * 8);
            // `struct virtq_used_elem`: head, then length, little-endian.
            let element = u64::from(*written) << 32 | u64::from(*head);
            memory
                .write_obj(element.to_le(), GuestAddress(at))
                .map_err(outside)?;
            next += 1;
        }
        queue.set_next_used(next.0);
        // The last element moves the index over all of them.
        queue
            .add_used(memory, *last_head, *last_written)
            .map_err(|source| DeviceFault::Queue {
                queue: index,
                source,
            })?;
        if queue.event_idx_enabled() {
            // `needs_notification` counts one element for each time the index moved,
            // the latest ones: what came before it, and it may be all of an earlier
            // call, is for us to look at. As there, the index must be out before the
            // event is read.
            fence(Ordering::SeqCst);
            let size = u64::from(queue.size());
            let at = queue.avail_ring().saturating_add(4 + size * 2);
            let event: u16 = memory
                .load(GuestAddress(at), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(outside)?;
            self.passed_used_event |= Wrapping(event) - first <= next - first;
        }
        Ok(())
    }

    /// Tells the driver that the configuration space has changed.
    pub fn signal_configuration_change(&self) {
        self.interrupt.signal_configuration_change();
    }

    /// The size of queue `index`, 0 if the driver has not made it ready.
    pub fn size(&mut self, index: usize) -> u16 {
        self.ready(index).map_or(0, |queue| queue.size())
    }

    /// Interrupts the driver if it wants to hear of what was returned.
    pub fn notify(&mut self, index: usize) -> Result<(), DeviceFault> {
        let memory = self.memory;
        let passed = std::mem::take(&mut self.passed_used_event);
        let Some(queue) = self.ready(index) else {
            return Ok(());
        };
        let wanted = queue
            .needs_notification(memory)
            .map_err(|source| DeviceFault::Queue {
                queue: index,
                source,
            })?;
        if (wanted || passed) && !interrupts_unwanted(queue, memory) {
            self.interrupt.signal_used_buffer();
        }
        Ok(())
    }

    /// Asks the driver not to ring the doorbell, or to ring it again. Returns
    /// whether chains became available before it could know: never in a queue
    /// that is not ready, whose rings may be anywhere.
    ///
    /// A driver can make the answer yes as often as it is asked: who asks in a
    /// loop must count.
    pub fn want_doorbell(&mut self, index: usize, wanted: bool) -> Result<bool, DeviceFault> {
        let memory = self.memory;
        let Some(queue) = self.ready(index) else {
            return Ok(false);
        };
        let result = if wanted {
            queue.enable_notification(memory)
        } else {
            queue.disable_notification(memory).map(|()| false)
        };
        result.map_err(|source| DeviceFault::Queue {
            queue: index,
            source,
        })
    }

    /// Whether the driver has made chains available that were not popped.
    pub fn has_available(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(|queue| {
            queue.ready()
                && queue
                    .avail_idx(self.memory, Ordering::Acquire)
                    .is_ok_and(|next| next != Wrapping(queue.next_avail()))
        })
    }

    /// Hands each available chain of queue `index` to `handle` and returns it to
    /// the driver.
    ///
    /// Stops after a queue's worth of chains or [`BYTES_PER_TURN`], so that one
    /// device cannot keep the event loop from the others however fast its driver
    /// is.
    pub fn drain(
        &mut self,
        index: usize,
        mut handle: impl FnMut(Chain<'a>) -> Result<Served, DeviceFault>,
    ) -> Result<Drained, DeviceFault> {
        self.take(index, |chain| handle(chain).map(Taken::Used))
    }

    /// Hands each available chain of queue `index` to `handle`, which need not be
    /// done with it. Stops as [`Queues::drain`] does, or with a chain that is
    /// refused: that one stays in the queue, the doorbell is not asked for, and
    /// [`Drained::Empty`] is returned. Who refuses comes back of its own accord.
    pub fn take(
        &mut self,
        index: usize,
        mut handle: impl FnMut(Chain<'a>) -> Result<Taken, DeviceFault>,
    ) -> Result<Drained, DeviceFault> {
        let Some(queue) = self.ready(index) else {
            return Ok(Drained::Empty);
        };
        let mut budget = Budget {
            chains: queue.size(),
            bytes: BYTES_PER_TURN,
        };
        loop {
            self.want_doorbell(index, false)?;
            let mut used = false;
            let mut refused = false;
            while !budget.is_spent() && !refused {
                let Some(chain) = self.pop(index)? else { break };
                let head = chain.head_index();
                if let Some(meter) = &mut self.meter {
                    meter.taken(index, head);
                }
                match handle(chain)? {
                    Taken::Used(served) => {
                        budget.charge(served.moved);
                        if let Some(meter) = &self.meter {
                            meter.read(served.moved.saturating_sub(served.written.into()));
                        }
                        self.push_used(index, head, served.written)?;
                        used = true;
                    }
                    Taken::Kept { moved } => budget.charge(moved),
                    Taken::Refused => {
                        self.unpop(index);
                        refused = true;
                    }
                }
            }
            if used {
                self.notify(index)?;
            }
            if refused {
                return Ok(Drained::Empty);
            }
            if budget.is_spent() {
                return Ok(Drained::Again);
            }
            if !self.want_doorbell(index, true)? {
                return Ok(Drained::Empty);
            }
            budget.charge(0);
        }
    }

    /// Counts chains that are about to be returned: before the driver can see them.
    fn count_returned(&mut self, index: usize, chains: &[(u16, u32)]) {
        if self.ready(index).is_none() {
            return;
        }
        if let Some(meter) = &mut self.meter {
            for (head, written) in chains {
                meter.returned(index, *head, *written);
            }
        }
    }

    /// Queue `index`, if there is one and the driver has made it ready: only then
    /// were the addresses of its rings checked.
    fn ready(&mut self, index: usize) -> Option<&mut Queue> {
        self.queues.get_mut(index).filter(|queue| queue.ready())
    }
}

/// What one turn of [`Queues::drain`] may still do.
struct Budget {
    chains: u16,
    bytes: u64,
}

impl Budget {
    fn charge(&mut self, bytes: u64) {
        self.chains = self.chains.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_spent(&self) -> bool {
        self.chains == 0 || self.bytes == 0
    }
}

/// Whether the driver has asked for no interrupts (section 2.7.7), which counts
/// where the event index does not.
fn interrupts_unwanted(queue: &Queue, memory: &GuestMemory) -> bool {
    let state = queue.state();
    !state.event_idx_enabled
        && memory
            .load::<u16>(GuestAddress(state.avail_ring), Ordering::SeqCst)
            .is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
}

#[cfg(test)]
mod tests;
