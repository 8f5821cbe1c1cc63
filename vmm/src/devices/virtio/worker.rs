//! The queue worker: wakes a device for doorbells, for its backend and for its
//! limiters.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::mmio::MmioTransport;

/// Event data of the device's backend; doorbells have their queue's index.
const BACKEND: u32 = u32::MAX;
/// Event data of the timer of the device's first limiter; others follow, far above
/// all queues.
const TIMERS: u32 = u32::MAX - 8;

/// One device's place in the event loop.
pub struct QueueWorker {
    transport: Arc<MmioTransport>,
}

impl QueueWorker {
    /// A worker for the device behind `transport`.
    pub fn new(transport: Arc<MmioTransport>) -> Self {
        Self { transport }
    }
}

impl MutEventSubscriber for QueueWorker {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            BACKEND => self.transport.process_backend(),
            timer @ TIMERS.. => self.transport.process_timer((timer - TIMERS) as usize),
            queue => self.transport.process_queue(queue as usize),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Every descriptor here is registered once; epoll has no other objection.
        for (doorbell, index) in self.transport.own_doorbells() {
            let _ = ops.add(Events::with_data(doorbell, index, EventSet::IN));
        }
        if let Some(backend) = self.transport.backend() {
            let _ = ops.add(Events::with_data_raw(backend, BACKEND, EventSet::IN));
        }
        for (timer, data) in self.transport.timers().into_iter().zip(TIMERS..BACKEND) {
            let _ = ops.add(Events::with_data_raw(timer, data, EventSet::IN));
        }
    }
}
