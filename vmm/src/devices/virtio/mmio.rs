//! virtio over MMIO (virtio 1.3, section 4.2), version 2, for every device.
//!
//! This file is what a device does when there is something to do; [`registers`] is
//! what its driver writes and reads.

mod registers;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VirtioDevice;
use super::contained::Contained;
use super::interrupt::Interrupt;
use super::limiter::{Direction, Limiter, Limits};
use super::queues::{DeviceFault, Drained, Queues};
use crate::event::{EventKind, EventSink};
use crate::memory::GuestMemory;
use crate::metrics::device::{DeviceMetrics, QueueMeter};

pub(super) use registers::register;

/// Offset of `QueueNotify`, where an ioeventfd listens.
pub const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;

/// Why a transport could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The host has no descriptors left.
    #[error("cannot create an eventfd for a virtio device")]
    EventFd(#[from] io::Error),
    /// Who serves the queues does not take them.
    #[error("cannot share the interrupt and the doorbells of a virtio device")]
    ShareLines(#[source] io::Error),
    /// A device asked for a queue of impossible size: a defect of the device.
    #[error("a virtio device has a queue of impossible size")]
    QueueSize(#[from] virtio_queue::Error),
}

/// Why a device did not get other limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsRefused {
    /// It has none.
    #[error("knows no limits; nor does a NIC with vhost, whose frames the kernel moves")]
    None,
    /// A disk.
    #[error("has limits for both directions together: leave the direction out")]
    OneForBoth,
    /// A NIC.
    #[error("has limits for each direction: direction must be \"transmit\" or \"receive\"")]
    OneForEach,
    /// It has panicked, and its driver has not reset it since.
    #[error("is broken until its driver resets it")]
    Broken,
}

/// A device's registers and life cycle.
pub struct MmioTransport {
    memory: GuestMemory,
    interrupt: Interrupt,
    doorbells: Vec<EventFd>,
    events: Arc<EventSink>,
    metrics: DeviceMetrics,
    state: Mutex<State>,
}

struct State {
    device: Contained,
    queues: Vec<Queue>,
    status: u32,
    offered_features: u64,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    /// A reset has begun and is not over ([`VirtioDevice::is_unsettled`]).
    resetting: bool,
    /// `ConfigGeneration`: another number after each change of the configuration
    /// (section 2.5.1).
    config_generation: u32,
    /// Counts up: which queue is processed first when a limiter's timer expires.
    first_after_timer: usize,
    meter: QueueMeter,
}

/// How far a driver has brought a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeCycle {
    /// No driver has started it, or one has reset it.
    Idle,
    /// A driver uses it.
    Active,
    /// It waits for the driver to reset it.
    NeedsReset,
}

impl State {
    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// Whether the device may touch its queues.
    fn active(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK) && !self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    /// The selected queue, while the driver may still set it up.
    fn queue_to_set_up(&mut self) -> Option<&mut Queue> {
        let setting_up =
            self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        let select = self.queue_select as usize;
        self.queues.get_mut(select).filter(|_| setting_up)
    }
}

impl MmioTransport {
    /// Registers for `device`, in the state after reset; `metrics` count what it does.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        events: Arc<EventSink>,
        metrics: DeviceMetrics,
    ) -> Result<Arc<Self>, TransportError> {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|size| Queue::new(*size))
            .collect::<Result<Vec<_>, _>>()?;
        let doorbells = queues
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<Vec<_>, _>>()?;
        let offered_features = device.features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        let interrupt = match device.handed_over() {
            0 => Interrupt::new()?,
            _ => Interrupt::shared()?,
        };
        let interrupt = interrupt.counted_by(metrics);
        let bytes_are_counted = device.share_metrics(metrics);
        let meter = QueueMeter::new(metrics, bytes_are_counted, device.queue_sizes());
        device
            .share_lines(interrupt.line(), &doorbells)
            .map_err(TransportError::ShareLines)?;
        Ok(Arc::new(Self {
            memory,
            interrupt,
            doorbells,
            events,
            metrics,
            state: Mutex::new(State {
                device: Contained::new(device),
                queues,
                status: 0,
                offered_features,
                driver_features: 0,
                device_features_select: 0,
                driver_features_select: 0,
                queue_select: 0,
                resetting: false,
                config_generation: 0,
                first_after_timer: 0,
                meter,
            }),
        }))
    }

    /// One eventfd for each queue, to be rung by ioeventfd.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// What to register as an irqfd.
    pub fn interrupt_line(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// The doorbells that the event loop listens to, and their queues.
    pub fn own_doorbells(&self) -> impl Iterator<Item = (&EventFd, u32)> {
        let handed_over = self.lock().device.handed_over();
        self.doorbells.iter().zip(0..).skip(handed_over)
    }

    /// Answers the doorbell of queue `index`.
    pub fn process_queue(&self, index: usize) {
        let Some(doorbell) = self.doorbells.get(index) else {
            return;
        };
        let mut state = self.lock();
        // Taken before the queue is looked at, so that no ring goes unheard.
        state.meter.doorbell(index, doorbell.read().unwrap_or(0));
        if !state.active() {
            return;
        }
        let State {
            device,
            queues,
            meter,
            ..
        } = &mut *state;
        meter.queue_run();
        let mut queues = Queues::new(queues, &self.memory, &self.interrupt).counted_by(meter);
        match device.process_queue(index, &mut queues) {
            Ok(Drained::Empty) => {}
            Ok(Drained::Again) => {
                meter.own_doorbell(index);
                let _ = doorbell.write(1);
            }
            Err(fault) => self.fail(&mut state, &fault),
        }
        self.settle(&mut state);
    }

    /// Lets the device look at its backend.
    pub fn process_backend(&self) {
        let mut state = self.lock();
        let active = state.active();
        let State {
            device,
            queues,
            meter,
            ..
        } = &mut *state;
        let mut queues = Queues::new(queues, &self.memory, &self.interrupt).counted_by(meter);
        if let Err(fault) = device.process_backend(active.then_some(&mut queues)) {
            self.fail(&mut state, &fault);
        }
        self.settle(&mut state);
    }

    /// Whether the event loop shall wake the device for its backend and its timer. Not
    /// after a panic: the device is not called until its reset, and could leave them
    /// ready for ever. When that has changed for the better, a doorbell is rung.
    pub fn listens(&self) -> bool {
        self.lock().device.is_sound()
    }

    /// The device's name and how far a driver has brought it. For the event loop:
    /// the lock is never held for longer than an event or a register access.
    pub fn life_cycle(&self) -> (String, LifeCycle) {
        let state = self.lock();
        let life_cycle = if state.has(VIRTIO_CONFIG_S_NEEDS_RESET) {
            LifeCycle::NeedsReset
        } else if state.active() {
            LifeCycle::Active
        } else {
            LifeCycle::Idle
        };
        (state.device.name().to_owned(), life_cycle)
    }

    /// Follows each event. Tells the driver if the device has changed its
    /// configuration: the lock that was held during the change keeps the driver from
    /// reading half of it.
    fn settle(&self, state: &mut State) {
        if state.device.take_configuration_change() {
            state.config_generation = state.config_generation.wrapping_add(1);
            if state.active() {
                self.interrupt.signal_configuration_change();
            }
        }
        self.look_for_panic(state);
        if state.resetting && !state.device.is_unsettled() {
            state.resetting = false;
            state.status = 0;
        }
    }

    /// Follows each call to the device that returns no fault.
    fn look_for_panic(&self, state: &mut State) {
        if let Some(fault) = state.device.take_fault() {
            self.fail(state, &fault);
        }
    }

    /// The number of the descriptor that wakes [`MmioTransport::process_backend`];
    /// open for as long as the device lives.
    pub fn backend(&self) -> Option<RawFd> {
        self.lock().device.backend()
    }

    /// The numbers of the descriptors that wake [`MmioTransport::process_timer`], one
    /// for each limiter; open for as long as the device lives.
    pub fn timers(&self) -> Vec<RawFd> {
        let mut state = self.lock();
        let timers = |limiters: &mut [Limiter]| {
            let timers = limiters.iter().map(|one| one.timer().as_raw_fd());
            timers.collect()
        };
        state.device.with_limiters(timers).unwrap_or_default()
    }

    /// Lets the device go on with what its limiter `number` made wait.
    pub fn process_timer(&self, number: usize) {
        let first = {
            let mut state = self.lock();
            state.device.with_limiters(|limiters| {
                if let Some(limiter) = limiters.get_mut(number) {
                    limiter.expired();
                    self.metrics.limit_wait();
                }
            });
            state.first_after_timer = state.first_after_timer.wrapping_add(1);
            state.first_after_timer
        };
        // Queues that share a limit take turns at being the first to have what there
        // is of it.
        let queues = self.doorbells.len();
        for index in 0..queues {
            self.process_queue((first % queues + index) % queues);
        }
    }

    /// Gives the device other limits from now on, for the given direction where it
    /// has limits for each.
    pub fn set_limits(
        &self,
        direction: Option<Direction>,
        limits: Limits,
    ) -> Result<(), LimitsRefused> {
        let mut state = self.lock();
        let set = state.device.with_limiters(|limiters| {
            let limiter = match (limiters, direction) {
                ([], _) => return Err(LimitsRefused::None),
                ([limiter], None) | ([limiter, _], Some(Direction::Transmit)) => limiter,
                ([_, limiter], Some(Direction::Receive)) => limiter,
                ([_], Some(_)) => return Err(LimitsRefused::OneForBoth),
                _ => return Err(LimitsRefused::OneForEach),
            };
            limiter.set(limits);
            Ok(())
        });
        self.look_for_panic(&mut state);
        set.unwrap_or(Err(LimitsRefused::Broken))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the device, tells the driver, tells the agent. Once per reset, so
    /// that a guest cannot flood the event stream faster than it can reset.
    fn fail(&self, state: &mut State, fault: &DeviceFault) {
        if state.has(VIRTIO_CONFIG_S_NEEDS_RESET) {
            return;
        }
        state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.metrics.fault();
        self.interrupt.signal_configuration_change();
        self.tell_agent(state, fault);
    }

    fn tell_agent(&self, state: &State, fault: &DeviceFault) {
        self.events.send(EventKind::DeviceFault {
            device: state.device.name().to_owned(),
            reason: fault.to_string(),
        });
    }
}

#[cfg(test)]
mod tests;
