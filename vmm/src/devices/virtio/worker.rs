//! The queue worker: wakes a device for doorbells and for its backend.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::mmio::MmioTransport;

/// Event data of the device's backend; doorbells have their queue's index.
const BACKEND: u32 = u32::MAX;

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
        if events.data() == BACKEND {
            self.transport.process_backend();
        } else {
            self.transport.process_queue(events.data() as usize);
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
    }
}
