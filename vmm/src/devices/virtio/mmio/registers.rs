//! The registers, and what writing to them does.

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::{MmioTransport, State};
use crate::bus::BusDevice;
use crate::devices::virtio::queues::DeviceFault;

/// "virt", little-endian.
pub(super) const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "MOTE", little-endian.
const VENDOR: u32 = 0x4554_4f4d;

/// Register offsets (virtio 1.3, section 4.2.2).
pub(in super::super) mod register {
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

impl MmioTransport {
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
                // Who has waited in vain once need not wait again, and must not: a driver
                // may do this as often as it likes.
                if !state.device.is_unsettled() {
                    state.device.queue_taken_away(select);
                }
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
