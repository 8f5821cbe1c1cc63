//! Which taps have frames.
//!
//! Taps are watched edge-triggered in an epoll of the device's own, which the event
//! loop watches in turn. So a tap whose frames nobody takes wakes the loop once for
//! each frame its queue has room for, and then no more, without a system call to
//! stop and to start watching.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MAX_PAIRS;

/// Event data of [`Watch::again`]; taps have their index.
const AGAIN: u64 = u64::MAX;

/// The taps of one device and an event that wakes the device itself.
#[derive(Debug)]
pub struct Watch {
    epoll: Epoll,
    again: EventFd,
}

impl Watch {
    /// Watches `taps`, which the caller keeps open as long as this exists.
    pub fn new<'a>(taps: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch =
            |fd, events, data| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data));
        let again = EventFd::new(EFD_NONBLOCK)?;
        for (tap, index) in taps.into_iter().zip(0..) {
            watch(
                tap.as_raw_fd(),
                EventSet::IN | EventSet::EDGE_TRIGGERED,
                index,
            )?;
        }
        watch(again.as_raw_fd(), EventSet::IN, AGAIN)?;
        Ok(Self { epoll, again })
    }

    /// Comes back without waiting for a frame.
    pub fn wake_again(&self) {
        // A counter far from its end takes one more without blocking.
        let _ = self.again.write(1);
    }

    /// Calls `ready` for each tap with new frames. The second argument says that it
    /// is gone instead (`tun_chr_poll` reports an error then).
    pub fn poll(&self, mut ready: impl FnMut(usize, bool)) {
        let mut events = [EpollEvent::default(); MAX_PAIRS + 1];
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
