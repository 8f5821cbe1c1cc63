//! One pair of queues served by the host's kernel (vhost-net), by an inherited
//! descriptor of `/dev/vhost-net`.
//!
//! The kernel takes buffers from the queues, moves frames between them and the tap,
//! and raises the device's interrupt by the eventfd that this process raises it by. What
//! it cannot do is set the interrupt's bit in `InterruptStatus`; that bit reads as set
//! all the time instead, and a driver that looks finds its used ring as it is.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::tap::Tap;
use crate::memory::GuestMemory;

/// What must be the same on both sides of a ring. All else is between the driver
/// and the tap.
const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Queues in a pair.
const PAIR: usize = 2;

/// An open `/dev/vhost-net` that nobody has used yet.
#[derive(Debug)]
pub struct VhostFd(OwnedFd);

impl VhostFd {
    /// Takes the descriptor if it is one, of a kernel that knows all that is needed.
    pub fn new(fd: OwnedFd) -> Option<Self> {
        let device = Device {
            fd,
            memory: Arc::default(),
        };
        let features = device.get_features().ok()?;
        (features & RING_FEATURES == RING_FEATURES).then_some(Self(device.fd))
    }
}

struct Device {
    fd: OwnedFd,
    memory: Arc<GuestMemory>,
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl VhostKernBackend for Device {
    type AS = Arc<GuestMemory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    fn is_valid(&self, _: &VringConfigData) -> bool {
        // The transport has checked the rings before the device hears of them.
        true
    }
}

/// A pair of queues.
pub struct VhostPair {
    device: Device,
    /// Which queues were set up and can be started.
    ready: [bool; PAIR],
}

fn failed(error: vhost::Error) -> io::Error {
    io::Error::other(error)
}

impl VhostPair {
    /// Gives the kernel the guest's memory, once.
    pub fn new(fd: VhostFd, memory: &GuestMemory) -> io::Result<Self> {
        let device = Device {
            fd: fd.0,
            memory: Arc::new(memory.clone()),
        };
        device.set_owner().map_err(failed)?;
        let regions: Vec<_> = memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            })
            .collect();
        device.set_mem_table(&regions).map_err(failed)?;
        Ok(Self {
            device,
            ready: [false; PAIR],
        })
    }

    /// Lets the kernel raise the device's interrupt by `line`.
    pub fn share_interrupt(&self, line: &EventFd) -> io::Result<()> {
        (0..PAIR).try_for_each(|index| self.device.set_vring_call(index, line).map_err(failed))
    }

    /// Tells the kernel of the rings of `queues`, which `doorbells` are rung for.
    /// It does not touch them before [`VhostPair::start`].
    pub fn set_up(
        &mut self,
        features: u64,
        queues: &[Queue],
        doorbells: &[EventFd],
    ) -> io::Result<()> {
        let device = &self.device;
        device
            .set_features(features & RING_FEATURES)
            .map_err(failed)?;
        self.ready = [false; PAIR];
        let vrings = self.ready.iter_mut().zip(0..);
        for ((queue, doorbell), (ready, index)) in queues.iter().zip(doorbells).zip(vrings) {
            if !queue.ready() {
                continue;
            }
            let config = VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: queue.desc_table(),
                used_ring_addr: queue.used_ring(),
                avail_ring_addr: queue.avail_ring(),
                log_addr: None,
            };
            device.set_vring_num(index, queue.size()).map_err(failed)?;
            device.set_vring_base(index, 0).map_err(failed)?;
            device.set_vring_addr(index, &config).map_err(failed)?;
            device.set_vring_kick(index, doorbell).map_err(failed)?;
            *ready = true;
        }
        Ok(())
    }

    /// Lets the kernel serve the queues that were set up, with frames from and for
    /// `tap`.
    pub fn start(&self, tap: &Tap) -> io::Result<()> {
        for (ready, index) in self.ready.iter().zip(0..) {
            if *ready {
                self.set_backend(index, tap.as_raw_fd())?;
            }
        }
        Ok(())
    }

    /// Takes the queues back: when this returns, the kernel does not touch them.
    pub fn stop(&self) {
        for index in 0..PAIR {
            self.stop_queue(index);
        }
    }

    /// Takes one queue back for good, 0 for frames to the driver, 1 for frames from
    /// it.
    pub fn take_back(&mut self, index: usize) {
        if let Some(ready) = self.ready.get_mut(index) {
            *ready = false;
            self.stop_queue(index);
        }
    }

    fn stop_queue(&self, index: usize) {
        // Refused only where there is nothing to stop.
        let _ = self.set_backend(index, -1);
    }

    fn set_backend(&self, index: usize, fd: RawFd) -> io::Result<()> {
        let file = vhost_vring_file {
            index: index as u32,
            fd,
        };
        // SAFETY: VHOST_NET_SET_BACKEND reads a `vhost_vring_file`, which outlives
        // the call; the kernel takes a reference to the tap of its own.
        match unsafe { ioctl_with_ref(&self.device, VHOST_NET_SET_BACKEND(), &file) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
