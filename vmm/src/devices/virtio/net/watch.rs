//! Which taps have frames.
//!
//! Taps are watched edge-triggered in an epoll of the device's own, which the event
//! loop watches in turn. So a tap whose frames nobody takes wakes the loop once for
//! each frame its queue has room for, and then no more, without a system call to
//! stop and to start watching.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MAX_PAIRS;

/// Event data of [`Watch::again`]; taps have their index.
const AGAIN: u64 = u64::MAX;

/// The taps of one device and an event that wakes the device itself.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    again: EventFd,
}

impl Watch {
    /// Watches `taps`, which the caller keeps open as long as this exists.
    pub fn new<'a>(taps: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let again = EventFd::new(EFD_NONBLOCK)?;
        for (tap, index) in taps.into_iter().zip(0..) {
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&epoll, tap, EventData::new_u64(index), flags)?;
        }
        // SAFETY: `again` is open and outlives the borrow, which ends here.
        let again_fd = unsafe { BorrowedFd::borrow_raw(again.as_raw_fd()) };
        epoll::add(&epoll, again_fd, EventData::new_u64(AGAIN), EventFlags::IN)?;
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
        let mut events = Vec::with_capacity(MAX_PAIRS + 1);
        let no_wait = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Only a signal makes this fail; the descriptor stays ready.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&no_wait));
        for event in events {
            match event.data.u64() {
                AGAIN => {
                    let _ = self.again.read();
                }
                index => {
                    let flags = event.flags;
                    let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP);
                    ready(index as usize, gone);
                }
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
