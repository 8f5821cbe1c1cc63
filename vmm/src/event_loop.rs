//! One thread waits for every device's events and for the end.

use std::sync::Arc;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};

use crate::exit::{ExitLine, ExitReason};
use crate::kvm::pause::{PauseGate, Phase};

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
    gate: Arc<PauseGate>,
    /// The devices that are served now.
    devices: Vec<SubscriberId>,
    /// The devices that rest while the guest is paused.
    resting: Vec<Subscriber>,
}

impl EventLoop {
    /// A loop that ends when `exit` is pulled, and lets the devices rest when
    /// `gate` holds the vCPUs.
    pub fn new(exit: Arc<ExitLine>, gate: Arc<PauseGate>) -> Result<Self, EventLoopError> {
        // Few descriptors are ready at once; the buffer is memory each VM pays.
        let mut manager =
            EventManager::<Subscriber>::new_with_capacity(32).map_err(EventLoopError::Poll)?;
        manager.add_subscriber(Box::new(ExitWatch(Arc::clone(&exit))));
        Ok(Self {
            manager,
            exit,
            gate,
            devices: Vec::new(),
            resting: Vec::new(),
        })
    }

    /// Adds a device to wake, unless the guest is paused. What it waits for is
    /// registered anew by its `init` after each pause.
    pub fn add(&mut self, device: Subscriber) {
        self.devices.push(self.manager.add_subscriber(device));
    }

    /// Adds someone to wake always. It must read the events of the gate, if
    /// anyone requests a pause.
    pub fn add_always(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Runs until the microVM ends.
    pub fn run(&mut self) -> Result<ExitReason, EventLoopError> {
        loop {
            if let Some(reason) = self.exit.reason() {
                return Ok(reason.clone());
            }
            self.manager.run().map_err(EventLoopError::Poll)?;
            self.follow_gate()?;
        }
    }

    /// Takes the devices out of the loop when the vCPUs are held, and back in
    /// when they run. What happens meanwhile is not lost: descriptors stay ready.
    fn follow_gate(&mut self) -> Result<(), EventLoopError> {
        match self.gate.phase() {
            Phase::Held => {
                for id in self.devices.drain(..) {
                    let device = self
                        .manager
                        .remove_subscriber(id)
                        .map_err(EventLoopError::Poll)?;
                    self.resting.push(device);
                }
                self.gate.confirm();
            }
            Phase::Running => {
                for device in self.resting.drain(..) {
                    self.devices.push(self.manager.add_subscriber(device));
                }
            }
            Phase::Pausing | Phase::Paused => {}
        }
        Ok(())
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
