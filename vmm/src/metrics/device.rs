//! What is counted for a virtio device: by its transport, its queues and its interrupt.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::DeviceBlock;
use crate::event::monotonic_ns;

/// The counters of one device; does nothing where no metrics are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceMetrics {
    block: Option<&'static DeviceBlock>,
    latencies: bool,
}

impl DeviceMetrics {
    /// Counts into `block`.
    pub(super) fn new(block: Option<&'static DeviceBlock>, latencies: bool) -> Self {
        Self { block, latencies }
    }

    fn add(&self, counter: impl FnOnce(&DeviceBlock) -> &AtomicU64, more: u64) {
        if let Some(block) = self.block
            && more > 0
        {
            counter(block).fetch_add(more, Ordering::Relaxed);
        }
    }

    /// An interrupt is about to be raised.
    pub fn interrupt(&self) {
        self.add(|block| &block.interrupts, 1);
    }

    /// The device refused what the driver did.
    pub fn fault(&self) {
        self.add(|block| &block.faults, 1);
    }

    /// The driver resets the device.
    pub fn reset(&self) {
        self.add(|block| &block.resets, 1);
    }

    /// Requests have waited for a limit.
    pub fn limit_wait(&self) {
        self.add(|block| &block.limit_waits, 1);
    }

    /// Bytes move into the guest's memory.
    pub fn to_guest(&self, bytes: u64) {
        self.add(|block| &block.bytes_to_guest, bytes);
    }

    /// Bytes move out of the guest's memory.
    pub fn from_guest(&self, bytes: u64) {
        self.add(|block| &block.bytes_from_guest, bytes);
    }
}

/// Follows the chains of a device's queues.
#[derive(Debug)]
pub struct QueueMeter {
    metrics: DeviceMetrics,
    /// The device counts the bytes itself.
    bytes_are_counted: bool,
    queues: Vec<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {
    /// The transport rang the doorbell so often since it was answered.
    rung_by_transport: u64,
    /// When the request was taken whose chain begins with that descriptor.
    taken_ns: Vec<Option<u64>>,
}

impl QueueMeter {
    /// For a device with queues of these sizes at most.
    pub fn new(metrics: DeviceMetrics, bytes_are_counted: bool, queue_sizes: &[u16]) -> Self {
        let state = |size: &u16| QueueState {
            rung_by_transport: 0,
            taken_ns: match metrics.latencies {
                true => vec![None; usize::from(*size)],
                false => Vec::new(),
            },
        };
        Self {
            metrics,
            bytes_are_counted,
            queues: queue_sizes.iter().map(state).collect(),
        }
    }

    /// The doorbell of queue `index` was answered, rung `rings` times since.
    pub fn doorbell(&mut self, index: usize, rings: u64) {
        if let Some(queue) = self.queues.get_mut(index) {
            let own = std::mem::take(&mut queue.rung_by_transport);
            let rings = rings.saturating_sub(own);
            self.metrics.add(|block| &block.doorbells, rings);
        }
    }

    /// The transport rings the doorbell of queue `index` itself.
    pub fn own_doorbell(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.rung_by_transport += 1;
        }
    }

    /// A queue is about to be looked at.
    pub fn queue_run(&self) {
        self.metrics.add(|block| &block.queue_runs, 1);
    }

    /// The request at `head` was taken out of queue `index`.
    pub fn taken(&mut self, index: usize, head: u16) {
        if self.metrics.latencies
            && let Some(taken_ns) = self.taken_ns(index, head)
        {
            *taken_ns = Some(monotonic_ns());
        }
    }

    /// A request was served: the device has read `bytes` of it.
    pub fn read(&self, bytes: u64) {
        if !self.bytes_are_counted {
            self.metrics.from_guest(bytes);
        }
    }

    /// The chain at `head` is about to be returned, with `written` bytes in it.
    pub fn returned(&mut self, index: usize, head: u16, written: u32) {
        self.metrics.add(|block| &block.chains, 1);
        if !self.bytes_are_counted {
            self.metrics.to_guest(written.into());
        }
        let taken_ns = self.taken_ns(index, head).and_then(Option::take);
        if let (Some(block), Some(taken_ns)) = (self.metrics.block, taken_ns) {
            block
                .service
                .record(monotonic_ns().saturating_sub(taken_ns));
        }
    }

    fn taken_ns(&mut self, index: usize, head: u16) -> Option<&mut Option<u64>> {
        let queue = self.queues.get_mut(index)?;
        queue.taken_ns.get_mut(usize::from(head))
    }
}
