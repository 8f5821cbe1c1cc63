//! virtio over MMIO (virtio 1.3, section 4.2), version 2, for every device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
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
use crate::bus::BusDevice;
use crate::event::{EventKind, EventSink};
use crate::memory::GuestMemory;
use crate::metrics::device::{DeviceMetrics, QueueMeter};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "MOTE", little-endian.
const VENDOR: u32 = 0x4554_4f4d;

/// Offset of `QueueNotify`, where an ioeventfd listens.
pub const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;

/// Register offsets (virtio 1.3, section 4.2.2).
pub(super) mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

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

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            // Apart from the lock: read at every interrupt.
            register::INTERRUPT_STATUS => return self.interrupt.status(),
            register::MAGIC_VALUE => return MAGIC,
            register::VERSION => return VERSION,
            register::VENDOR_ID => return VENDOR,
            // No shared memory regions: a length of all ones says so.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => return u32::MAX,
            _ => {}
        }
        let mut state = self.lock();
        let unsettled = offset == register::QUEUE_READY && state.device.is_unsettled();
        let queue = state.queues.get(state.queue_select as usize);
        match offset {
            register::DEVICE_ID => state.device.device_type(),
            register::DEVICE_FEATURES => half(state.offered_features, state.device_features_select),
            register::QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| {
                // One that was taken away and is still used is not gone.
                u32::from(queue.ready() || unsettled)
            }),
            register::STATUS => state.status,
            register::CONFIG_GENERATION => state.config_generation,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == register::INTERRUPT_ACK {
            self.interrupt.acknowledge(value);
            return;
        }
        if offset == register::QUEUE_NOTIFY {
            // KVM catches this on its own where an ioeventfd is registered.
            if let Some(doorbell) = self.doorbells.get(value as usize) {
                let _ = doorbell.write(1);
            }
            return;
        }
        let mut state = self.lock();
        match offset {
            register::STATUS => self.write_status(&mut state, value),
            register::DEVICE_FEATURES_SEL => state.device_features_select = value,
            register::DRIVER_FEATURES_SEL => state.driver_features_select = value,
            register::DRIVER_FEATURES => write_features(&mut state, value),
            register::QUEUE_SEL => state.queue_select = value,
            _ => self.write_queue(&mut state, offset, value),
        }
        self.look_for_panic(&mut state);
    }

    /// The driver's steps (virtio 1.3, section 3.1.1), in order or not at all.
    fn write_status(&self, state: &mut State, value: u32) {
        if state.resetting {
            return;
        }
        if value == 0 {
            self.reset(state);
            return;
        }
        let added = value & !state.status;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let unknown = state.driver_features & !state.offered_features;
            let modern = state.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
            let refused = unknown != 0 || !modern || state.device.is_dead();
            if !state.has(VIRTIO_CONFIG_S_DRIVER) || refused {
                // Not setting the bit is how a device refuses features.
                return;
            }
        }
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            if !state.has(VIRTIO_CONFIG_S_FEATURES_OK) {
                return;
            }
            self.activate(state);
        }
        // The driver sets bits and never clears them, except by reset;
        // NEEDS_RESET and the undefined bits are not its to set.
        const DRIVER_BITS: u32 = 0xf | VIRTIO_CONFIG_S_FAILED;
        state.status |= value & DRIVER_BITS;
    }

    fn activate(&self, state: &mut State) {
        let event_index = state.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut fault = None;
        for (queue, index) in state.queues.iter_mut().zip(0..) {
            queue.set_event_idx(event_index);
            if queue.ready() && !queue.is_valid(&self.memory) {
                fault = Some(DeviceFault::Chain {
                    queue: index,
                    reason: "the rings lie outside guest memory",
                });
            }
        }
        state.status |= VIRTIO_CONFIG_S_DRIVER_OK;
        match fault {
            None => {
                let State { device, queues, .. } = state;
                let activated = device.activate(state.driver_features, queues, &self.doorbells);
                if let Err(fault) = activated {
                    self.fail(state, &fault);
                }
            }
            Some(fault) => self.fail(state, &fault),
        }
    }

    fn write_queue(&self, state: &mut State, offset: u64, value: u32) {
        if offset == register::QUEUE_READY && value == 0 {
            // A driver takes a queue away at any time, and waits until it reads that
            // it is gone (section 4.2.2.2).
            let select = state.queue_select as usize;
            if let Some(queue) = state.queues.get_mut(select) {
                queue.set_ready(false);
                state.device.queue_taken_away(select);
                if state.device.is_unsettled() {
                    self.fail(state, &DeviceFault::Unsettled);
                }
            }
            return;
        }
        let Some(queue) = state.queue_to_set_up() else {
            return;
        };
        match offset {
            // What a queue refuses, it keeps as it was; `is_valid` judges the rest.
            register::QUEUE_SIZE => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => queue.set_ready(value == 1),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn reset(&self, state: &mut State) {
        self.metrics.reset();
        let was_sound = state.device.is_sound();
        if let Err(fault) = state.device.reset() {
            // Once in its life: a dead device is not reset again. Its driver finds out
            // when no features are agreed on.
            self.tell_agent(state, &fault);
        }
        for queue in &mut state.queues {
            queue.reset();
        }
        // Not those of others, who may have changed whether reading them waits.
        let own = state.device.handed_over();
        for (doorbell, index) in self.doorbells.iter().zip(0..).skip(own) {
            state.meter.doorbell(index, doorbell.read().unwrap_or(0));
        }
        if !was_sound
            && state.device.is_sound()
            && let Some(doorbell) = self.doorbells.get(state.device.handed_over())
        {
            // The event loop may listen to its backend again.
            let _ = doorbell.write(1);
        }
        self.interrupt.acknowledge(u32::MAX);
        state.resetting = state.device.is_unsettled();
        if state.resetting {
            // To a driver the reset is over when it reads 0 (section 2.4.2), and one that
            // does not look finds that nothing it writes has an effect.
            self.tell_agent(state, &DeviceFault::Unsettled);
        }
        state.status = match state.resetting {
            true => VIRTIO_CONFIG_S_NEEDS_RESET,
            false => 0,
        };
        state.driver_features = 0;
        state.device_features_select = 0;
        state.driver_features_select = 0;
        state.queue_select = 0;
    }
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn write_features(state: &mut State, value: u32) {
    if !state.has(VIRTIO_CONFIG_S_DRIVER) || state.has(VIRTIO_CONFIG_S_FEATURES_OK) {
        return;
    }
    let (low, high) = (state.driver_features as u32, state.driver_features >> 32);
    state.driver_features = match state.driver_features_select {
        0 => high << 32 | u64::from(value),
        1 => u64::from(value) << 32 | u64::from(low),
        _ => return,
    };
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            let mut state = self.lock();
            state.device.read_config(offset - register::CONFIG, data);
            self.look_for_panic(&mut state);
            return;
        }
        // Registers are 32 bits wide and aligned; anything else reads as zero.
        data.fill(0);
        if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            let mut state = self.lock();
            state.device.write_config(offset - register::CONFIG, data);
            self.look_for_panic(&mut state);
            return;
        }
        if offset.is_multiple_of(4)
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

#[cfg(test)]
mod tests;
