//! Which of a device's own descriptors are ready.
//!
//! They are watched edge-triggered in an epoll of the device's own, which the event
//! loop watches in turn. So a tap or a pipe whose bytes nobody takes wakes the loop
//! once for each time bytes arrive, and then no more, without a system call to stop
//! and to start watching.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Event data of [`Watch::again`]; descriptors have their index.
const AGAIN: u64 = u64::MAX;
/// Events taken at once: one each of as many descriptors as any device has. More
/// stay ready.
const EVENTS: usize = 16;

/// The descriptors of one device and an event that wakes the device itself.
#[derive(Debug)]
pub struct Watch {
    epoll: Epoll,
    again: EventFd,
}

impl Watch {
    /// Watches `sources` for input, which the caller keeps open as long as this
    /// exists.
    pub fn new<'a>(sources: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let again = EventFd::new(EFD_NONBLOCK)?;
        let watch = Self { epoll, again };
        for (source, index) in sources.into_iter().zip(0..) {
            watch.add(source, index, EventSet::IN)?;
        }
        let level = EpollEvent::new(EventSet::IN, AGAIN);
        let number = watch.again.as_raw_fd();
        watch.epoll.ctl(ControlOperation::Add, number, level)?;
        Ok(watch)
    }

    /// Watches one more, for `events`. [`Watch::poll`] calls it by `index`. Fails
    /// with `PermissionDenied` for what is always ready, such as a regular file.
    pub fn add(&self, source: BorrowedFd, index: usize, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, index as u64);
        self.epoll
            .ctl(ControlOperation::Add, source.as_raw_fd(), event)
    }

    /// Comes back without waiting for a descriptor.
    pub fn wake_again(&self) {
        // A counter far from its end takes one more without blocking.
        let _ = self.again.write(1);
    }

    /// Calls `ready` for each descriptor with new bytes, or room for them. The second
    /// argument says that it is gone, or its other end (a tap that is gone reports an
    /// error: `tun_chr_poll` of Linux).
    pub fn poll(&self, mut ready: impl FnMut(usize, bool)) {
        let mut events = [EpollEvent::default(); EVENTS];
        // Only a signal makes this fail; the descriptor stays ready.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                AGAIN => {
                    let _ = self.again.read();
                }
                index => {
                    let events = event.event_set();
                    let gone = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
                    ready(index as usize, gone);
                }
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the epoll descriptor is open for as long as this exists.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }
}
