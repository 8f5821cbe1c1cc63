//! A device behind a wall that panics do not pass.
//!
//! All calls to a device that a guest's doings can lead to go through [`Contained`].
//! After a panic nothing in the device can be relied on, so that it is called no more
//! but for its reset; after a panic in its reset, never.

use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::limiter::Limiter;
use super::queues::{DeviceFault, Drained, Queues};
use crate::panics::contain;

/// How far a device can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Sound,
    /// It has panicked since its last reset.
    Broken,
    /// It has panicked in a reset.
    Dead,
}

/// A device, and what is known of it without asking it.
pub struct Contained {
    device: Box<dyn VirtioDevice>,
    name: String,
    device_type: u32,
    handed_over: usize,
    condition: Condition,
    /// A panic in a call that returns no result.
    fault: Option<DeviceFault>,
}

impl Contained {
    /// Takes over `device`, before any guest runs.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self {
            name: device.name().to_owned(),
            device_type: device.device_type(),
            handed_over: device.handed_over(),
            device,
            condition: Condition::Sound,
            fault: None,
        }
    }

    /// See [`VirtioDevice::name`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// See [`VirtioDevice::device_type`].
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// See [`VirtioDevice::handed_over`].
    pub fn handed_over(&self) -> usize {
        self.handed_over
    }

    /// Whether it has not panicked since its last reset.
    pub fn is_sound(&self) -> bool {
        self.condition == Condition::Sound
    }

    /// Whether no reset will make it work again.
    pub fn is_dead(&self) -> bool {
        self.condition == Condition::Dead
    }

    /// A panic that has not been told yet.
    pub fn take_fault(&mut self) -> Option<DeviceFault> {
        self.fault.take()
    }

    /// Calls the device, if it is sound; `Err` is a panic.
    fn call<'a, R>(
        &'a mut self,
        act: impl FnOnce(&'a mut dyn VirtioDevice) -> R,
    ) -> Result<Option<R>, DeviceFault> {
        if !self.is_sound() {
            return Ok(None);
        }
        let device = self.device.as_mut();
        match contain(|| act(device)) {
            Ok(result) => Ok(Some(result)),
            Err(panic) => {
                self.condition = Condition::Broken;
                Err(DeviceFault::Panic(panic))
            }
        }
    }

    /// The same for a call that returns no fault: that is kept.
    fn tell<R>(&mut self, act: impl FnOnce(&mut dyn VirtioDevice) -> R) -> Option<R> {
        self.call(act).unwrap_or_else(|fault| {
            self.fault = Some(fault);
            None
        })
    }

    /// See [`VirtioDevice::read_config`]; zeroes, if the device is broken.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        if self
            .tell(|device| device.read_config(offset, data))
            .is_none()
        {
            data.fill(0);
        }
    }

    /// See [`VirtioDevice::write_config`].
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.tell(|device| device.write_config(offset, data));
    }

    /// See [`VirtioDevice::take_configuration_change`].
    pub fn take_configuration_change(&mut self) -> bool {
        self.tell(|device| device.take_configuration_change()) == Some(true)
    }

    /// See [`VirtioDevice::activate`] and [`VirtioDevice::hand_over`].
    pub fn activate(
        &mut self,
        features: u64,
        queues: &[Queue],
        doorbells: &[EventFd],
    ) -> Result<(), DeviceFault> {
        let result = self.call(|device| {
            device.activate(features);
            device.hand_over(features, queues, doorbells)
        })?;
        result.unwrap_or(Ok(()))
    }

    /// See [`VirtioDevice::process_queue`].
    pub fn process_queue(
        &mut self,
        index: usize,
        queues: &mut Queues,
    ) -> Result<Drained, DeviceFault> {
        let result = self.call(|device| device.process_queue(index, queues))?;
        result.unwrap_or(Ok(Drained::Empty))
    }

    /// See [`VirtioDevice::queue_taken_away`].
    pub fn queue_taken_away(&mut self, index: usize) {
        self.tell(|device| device.queue_taken_away(index));
    }

    /// See [`VirtioDevice::is_unsettled`].
    pub fn is_unsettled(&mut self) -> bool {
        self.tell(|device| device.is_unsettled()) == Some(true)
    }

    /// See [`VirtioDevice::process_backend`].
    pub fn process_backend(&mut self, queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        let result = self.call(|device| device.process_backend(queues))?;
        result.unwrap_or(Ok(()))
    }

    /// See [`VirtioDevice::backend`].
    pub fn backend(&mut self) -> Option<RawFd> {
        self.tell(|device| device.backend().map(|fd| fd.as_raw_fd()))
            .flatten()
    }

    /// See [`VirtioDevice::limiters`]; `None` if the device is broken.
    pub fn with_limiters<R>(&mut self, act: impl FnOnce(&mut [Limiter]) -> R) -> Option<R> {
        self.tell(|device| act(device.limiters()))
    }

    /// See [`VirtioDevice::reset`]. A broken device may be sound afterwards; `Err` is
    /// its last.
    pub fn reset(&mut self) -> Result<(), DeviceFault> {
        if self.is_dead() {
            return Ok(());
        }
        match contain(|| self.device.reset()) {
            Ok(()) => {
                self.condition = Condition::Sound;
                Ok(())
            }
            Err(panic) => {
                self.condition = Condition::Dead;
                Err(DeviceFault::PanicInReset(panic))
            }
        }
    }
}
