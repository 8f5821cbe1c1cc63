//! virtio devices: one transport, one queue worker, one file for each device.
//!
//! A device implements [`VirtioDevice`]. [`mmio::MmioTransport`] gives it
//! registers and a life cycle, [`worker::QueueWorker`] wakes it when the guest
//! rings a doorbell, and [`queues::Queues`] is how it reads and answers.

pub mod balloon;
pub mod block;
pub mod console;
pub mod contained;
pub mod entropy;
pub mod fs;
pub mod interrupt;
pub mod limiter;
pub mod mmio;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(missing_docs, reason = "for tests and fuzzing, not for users")]
pub mod mock;
pub mod net;
pub mod pmem;
pub mod queues;
pub mod vsock;
pub mod watch;
pub mod worker;

use std::io;
use std::os::fd::BorrowedFd;

use crate::metrics::device::DeviceMetrics;
use limiter::Limiter;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use queues::{DeviceFault, Drained, Queues};

/// What a device is, and what it does when its queues or its backend have
/// something for it. Called with one event at a time.
pub trait VirtioDevice: Send {
    /// The name in events and messages, such as `blk0`.
    fn name(&self) -> &str;

    /// The device type of virtio 1.3, section 5.
    fn device_type(&self) -> u32;

    /// The largest size of each queue: a power of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits it offers, besides those of the transport and rings.
    fn features(&self) -> u64;

    /// Fills `data` from the configuration space; what lies past its end reads
    /// as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver wrote `data` into the configuration space. Most devices have
    /// nothing there that it may change.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Whether the device has changed its configuration since this was asked
    /// last. Asked after each event; the transport tells the driver.
    fn take_configuration_change(&mut self) -> bool {
        false
    }

    /// The driver is ready (`DRIVER_OK`) and acknowledged these features.
    fn activate(&mut self, _features: u64) {}

    /// How many of its queues, from the first, others serve than this process: the
    /// event loop does not listen to their doorbells.
    fn handed_over(&self) -> usize {
        0
    }

    /// Tells those others what raises the device's interrupt. It is one line for
    /// all: of two lines of one edge-triggered interrupt that are raised at once,
    /// KVM may take the later one for a part of the earlier, and lose it. With it come
    /// the doorbells, one for each queue, that [`VirtioDevice::hand_over`] gets too.
    fn share_lines(&mut self, _interrupt: &EventFd, _doorbells: &[EventFd]) -> io::Result<()> {
        Ok(())
    }

    /// Lets those others begin. Called after [`VirtioDevice::activate`] with the
    /// same features; the rings of queues that are ready lie in guest memory.
    fn hand_over(
        &mut self,
        _features: u64,
        _queues: &[Queue],
        _doorbells: &[EventFd],
    ) -> Result<(), DeviceFault> {
        Ok(())
    }

    /// Hands it its counters. Returns whether it counts the bytes that it moves; else
    /// they are those of the chains it serves, as it tells them when it returns them.
    fn share_metrics(&mut self, _metrics: DeviceMetrics) -> bool {
        false
    }

    /// The driver rang the doorbell of queue `index`.
    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault>;

    /// The driver reset the device: forget all requests in flight.
    fn reset(&mut self);

    /// The driver takes queue `index` away (`QueueReady` = 0) and will do as it
    /// likes with the buffers in it: forget all requests in flight there, and have
    /// whoever else serves it stop before this returns.
    fn queue_taken_away(&mut self, _index: usize) {}

    /// Whether the reset, or the taking away of a queue, is not over: something that was
    /// begun before may still read or write the driver's memory, for longer than a vCPU
    /// may wait. The device looks after it in [`VirtioDevice::process_backend`].
    fn is_unsettled(&self) -> bool {
        false
    }

    /// A descriptor of the device's own that the event loop shall watch for
    /// input, if it has one.
    fn backend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// That descriptor is ready. `queues` is missing while no driver is.
    fn process_backend(&mut self, _queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        Ok(())
    }

    /// What the device asks before it serves a request, if it knows limits: one
    /// limiter for all requests, or one for each [`limiter::Direction`] in their
    /// order. The transport watches the timers and has the queues processed when one
    /// expires.
    fn limiters(&mut self) -> &mut [Limiter] {
        &mut []
    }
}

/// Copies `config[offset..]` to `data`, zeroes past its end.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Ok(offset) = usize::try_from(offset) else {
        return;
    };
    if let Some(rest) = config.get(offset..) {
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
    }
}
