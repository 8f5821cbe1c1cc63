//! A timer that the event loop can wait for (timerfd_create(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Runs out once, some time after it was set. Its descriptor is readable then.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// One that is not set.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        timerfd_create(TimerfdClockId::Monotonic, flags)
            .map(Self)
            .map_err(Into::into)
    }

    /// Lets it run out `after` some time from now, and not at another time that it was
    /// set for. `false` if that is further off than the kernel counts.
    pub fn set(&self, after: Duration) -> bool {
        // Zero would stop it.
        let after = after.max(Duration::from_nanos(1));
        Timespec::try_from(after).is_ok_and(|after| self.arm(after))
    }

    /// Forgets what it was set for.
    pub fn stop(&self) {
        self.arm(Timespec::default());
    }

    fn arm(&self, it_value: Timespec) -> bool {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).is_ok()
    }

    /// Whether it has run out since it was set, or this was last asked.
    pub fn has_expired(&self) -> bool {
        rustix::io::read(&self.0, &mut [0_u8; 8]).is_ok()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn it_runs_out_once_if_it_is_not_stopped() {
        let timer = Timer::new().unwrap();
        let patience = Timespec::try_from(Duration::from_secs(60)).unwrap();
        for after in [Duration::ZERO, Duration::from_millis(1)] {
            assert!(timer.set(after));
            let mut watched = [PollFd::new(&timer, PollFlags::IN)];
            assert_eq!(poll(&mut watched, Some(&patience)), Ok(1));
            assert!(timer.has_expired());
            assert!(!timer.has_expired());
        }
        assert!(timer.set(Duration::ZERO));
        timer.stop();
        assert!(!timer.has_expired());
    }

    #[test]
    fn a_time_that_cannot_be_told_is_refused() {
        assert!(!Timer::new().unwrap().set(Duration::MAX));
    }
}
