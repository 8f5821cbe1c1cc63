//! virtio-fs (virtio 1.3, section 5.11), served by a vhost-user backend.
//!
//! [`backend`] is the connection to it, [`message`] what goes over that. This file is the
//! device: it brings driver and backend together, and takes the queues back.
//!
//! The driver's `DRIVER_OK` returns at once; the event loop tells the backend of the
//! queues, and goes on with other devices until it answers. A queue that the driver takes
//! back must be out of the backend's hands when the driver goes on, so that vCPU waits,
//! not for long. After a failure the connection is closed, which a backend takes as its
//! end: the driver hears of it once it has started the device, and at each further start.
//!
//! A pause holds the vCPUs and this process, not the backend: it finishes the requests
//! that it finds.

pub mod backend;
pub mod message;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::queues::{DeviceFault, Drained, Queues};
use super::watch::Watch;
use super::{VirtioDevice, read_config_bytes};
use crate::timer::Timer;
use backend::{Backend, BackendError, Lines, Ring};
use message::Request;

/// One for requests that must not wait, and one for all others.
pub const QUEUES: usize = 2;
const QUEUE_SIZES: [u16; QUEUES] = [128, 1024];

/// The length of a tag in the configuration space.
pub const TAG_BYTES: usize = 36;
/// A name in UTF-8, zeroes after it.
pub type Tag = [u8; TAG_BYTES];

/// The tag and how many request queues there are.
const CONFIG_BYTES: usize = TAG_BYTES + 4;
const REQUEST_QUEUES: u32 = 1;

/// What is watched: the socket, at index 0, and the timer.
const TIMER: usize = 1;

/// The device.
pub struct Filesystem {
    name: String,
    config: [u8; CONFIG_BYTES],
    /// Missing after it has failed.
    backend: Option<Backend>,
    /// Why it is missing.
    failure: Option<BackendError>,
    lines: Option<Lines>,
    phase: Phase,
    /// What the backend was told of, or will be.
    rings: [Option<Ring>; QUEUES],
    watch: Watch,
    timer: Timer,
}

/// How far the backend has begun to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It touches no queue.
    Stopped,
    /// The driver, with these features, is ready; the backend was not told.
    Wanted { features: u64 },
    /// It was told, and has not answered all.
    Starting,
    /// It serves the queues.
    Started,
}

impl Filesystem {
    /// A file system called `name` in events and `tag` in the guest.
    pub fn new(name: String, tag: Tag, backend: Backend) -> io::Result<Self> {
        let timer = Timer::new()?;
        let watch = Watch::new([backend.as_fd(), timer.as_fd()])?;
        let mut config = [0; CONFIG_BYTES];
        config[..TAG_BYTES].copy_from_slice(&tag);
        config[TAG_BYTES..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        Ok(Self {
            name,
            config,
            backend: Some(backend),
            failure: None,
            lines: None,
            phase: Phase::Stopped,
            rings: [None; QUEUES],
            watch,
            timer,
        })
    }

    /// Has the backend do something; after a failure there is no backend.
    fn with_backend<T>(
        &mut self,
        act: impl FnOnce(&mut Backend, &mut Self) -> Result<T, BackendError>,
    ) -> Option<T> {
        let mut backend = self.backend.take()?;
        match act(&mut backend, self) {
            Ok(done) => {
                self.backend = Some(backend);
                Some(done)
            }
            Err(failure) => {
                self.failure = Some(failure);
                self.phase = Phase::Stopped;
                None
            }
        }
    }

    /// Goes on with whatever can be done without waiting.
    fn advance(&mut self, late: bool) {
        self.with_backend(|backend, device| {
            let answered = backend.receive()?;
            match device.phase {
                Phase::Wanted { features } => {
                    if let Some(lines) = &device.lines {
                        backend.start(features, &device.rings, lines)?;
                    }
                    device.phase = Phase::Starting;
                    device.timer.set(backend.patience().start);
                }
                Phase::Starting if answered => {
                    device.phase = Phase::Started;
                    device.timer.stop();
                }
                Phase::Starting if late => {
                    let request = Request::SetFeatures;
                    return Err(backend.late().unwrap_or(BackendError::Late { request }));
                }
                Phase::Starting | Phase::Started | Phase::Stopped => {}
            }
            Ok(())
        });
    }

    /// Takes queues back from the backend: those at which `taken` is true.
    fn stop(&mut self, taken: [bool; QUEUES]) {
        let told = matches!(self.phase, Phase::Starting | Phase::Started);
        let mut stopped = [false; QUEUES];
        for ((ring, taken), stopped) in self.rings.iter_mut().zip(taken).zip(&mut stopped) {
            *stopped = taken && ring.take().is_some() && told;
        }
        if stopped.contains(&true) {
            self.with_backend(|backend, _| backend.stop(stopped));
        }
    }

    fn fault(&self) -> DeviceFault {
        let reason = self.failure.as_ref().map(BackendError::to_string);
        DeviceFault::Host {
            what: "serve a file system",
            source: io::Error::other(reason.unwrap_or_default()),
        }
    }
}

impl VirtioDevice for Filesystem {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // Those of rings, which the transport offers and the backend was asked for.
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn handed_over(&self) -> usize {
        QUEUES
    }

    fn share_lines(&mut self, line: &EventFd, doorbells: &[EventFd]) -> io::Result<()> {
        self.lines = Some(Lines {
            interrupt: line.try_clone()?,
            doorbells: doorbells
                .iter()
                .map(EventFd::try_clone)
                .collect::<io::Result<_>>()?,
        });
        Ok(())
    }

    fn hand_over(
        &mut self,
        features: u64,
        queues: &[Queue],
        _doorbells: &[EventFd],
    ) -> Result<(), DeviceFault> {
        if self.backend.is_none() {
            return Err(self.fault());
        }
        for (ring, queue) in self.rings.iter_mut().zip(queues) {
            *ring = queue.ready().then(|| Ring {
                size: queue.size(),
                descriptors: queue.desc_table(),
                available: queue.avail_ring(),
                used: queue.used_ring(),
            });
        }
        self.phase = Phase::Wanted { features };
        self.watch.wake_again();
        Ok(())
    }

    fn process_queue(
        &mut self,
        _index: usize,
        _queues: &mut Queues,
    ) -> Result<Drained, DeviceFault> {
        // They are the backend's.
        Ok(Drained::Empty)
    }

    fn reset(&mut self) {
        self.stop([true; QUEUES]);
        self.phase = Phase::Stopped;
    }

    fn queue_taken_away(&mut self, index: usize) {
        let mut taken = [false; QUEUES];
        if let Some(taken) = taken.get_mut(index) {
            *taken = true;
        }
        self.stop(taken);
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn process_backend(&mut self, queues: Option<&mut Queues>) -> Result<(), DeviceFault> {
        let mut expired = false;
        self.watch.poll(|index, _| expired |= index == TIMER);
        let late = expired && self.timer.has_expired();
        let before = self.backend.is_some();
        self.advance(late);
        let failed = before && self.backend.is_none();
        match queues {
            Some(_) if failed => Err(self.fault()),
            // Without a driver there is nobody to tell.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;
