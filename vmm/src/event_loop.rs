//! One thread waits for every device's events and for the end.

use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::exit::{ExitLine, ExitReason};

/// Why the event loop stopped for no reason of the guest's.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// `epoll` failed.
    #[error("the event loop failed: {0:?}")]
    Poll(event_manager::Error),
}

/// Someone the event loop wakes.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// The event loop of one microVM.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
    exit: Arc<ExitLine>,
}

impl EventLoop {
    /// A loop that ends when `exit` is pulled.
    pub fn new(exit: Arc<ExitLine>) -> Result<Self, EventLoopError> {
        // Few descriptors are ready at once; the buffer is memory each VM pays.
        let mut manager =
            EventManager::<Subscriber>::new_with_capacity(32).map_err(EventLoopError::Poll)?;
        manager.add_subscriber(Box::new(ExitWatch(Arc::clone(&exit))));
        Ok(Self { manager, exit })
    }

    /// Adds someone to wake.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Runs until the microVM ends.
    pub fn run(&mut self) -> Result<ExitReason, EventLoopError> {
        loop {
            if let Some(reason) = self.exit.reason() {
                return Ok(reason.clone());
            }
            self.manager.run().map_err(EventLoopError::Poll)?;
        }
    }
}

struct ExitWatch(Arc<ExitLine>);

impl MutEventSubscriber for ExitWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Waking up is all; `run` looks at the reason.
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Only a second registration of one descriptor could fail.
        let _ = ops.add(Events::new(self.0.event(), EventSet::IN));
    }
}
