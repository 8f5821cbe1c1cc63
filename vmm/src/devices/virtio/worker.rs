//! The queue worker: wakes a device for doorbells, for its backend and for its
//! limiters.

use std::os::fd::RawFd;
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
    /// Whether it waits for the device's backend and timers, not only for doorbells.
    listens: bool,
    /// These, and their event data: a broken device is not asked.
    sources: Vec<(RawFd, u32)>,
}

impl QueueWorker {
    /// A worker for the device behind `transport`.
    pub fn new(transport: Arc<MmioTransport>) -> Self {
        let backend = transport.backend().map(|fd| (fd, BACKEND));
        let timers = transport.timers().into_iter().zip(TIMERS..BACKEND);
        let sources = backend.into_iter().chain(timers).collect();
        Self {
            transport,
            listens: false,
            sources,
        }
    }

    /// Begins to listen to the device's backend and timers, or ends it, as the
    /// transport wants it.
    fn follow(&mut self, ops: &mut EventOps) {
        let listens = self.transport.listens();
        if listens == self.listens {
            return;
        }
        self.listens = listens;
        for (fd, data) in self.sources.iter().copied() {
            let source = Events::with_data_raw(fd, data, EventSet::IN);
            // Every descriptor here is registered once; epoll has no other objection.
            let _ = match listens {
                true => ops.add(source),
                false => ops.remove(source),
            };
        }
    }
}

impl MutEventSubscriber for QueueWorker {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            BACKEND => self.transport.process_backend(),
            timer @ TIMERS.. => self.transport.process_timer((timer - TIMERS) as usize),
            queue => self.transport.process_queue(queue as usize),
        }
        self.follow(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Every descriptor here is registered once; epoll has no other objection.
        for (doorbell, index) in self.transport.own_doorbells() {
            let _ = ops.add(Events::with_data(doorbell, index, EventSet::IN));
        }
        // Anew after each pause.
        self.listens = false;
        self.follow(ops);
    }
}
