//! The host's side of the balloon: what it wishes, and what it is told.
//!
//! The handle and the device meet in atomics and two event descriptors, never in a
//! lock that one holds while it waits for the other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::discard::PAGE_BYTES;
use super::statistics::Statistics;

/// Why the balloon cannot do what is asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BalloonError {
    /// Not a size the balloon can have.
    #[error("target_bytes is {found}, it must be a multiple of {PAGE_BYTES} up to {most}")]
    Target {
        /// What was asked for.
        found: u64,
        /// The guest's memory.
        most: u64,
    },
    /// No driver, or one without the statistics queue.
    #[error("the guest has no balloon driver that tells statistics")]
    NoStatistics,
}

#[derive(Debug)]
struct Shared {
    memory_bytes: u64,
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    reported_bytes: AtomicU64,
    reports_statistics: AtomicBool,
    statistics_wanted: AtomicBool,
    statistics: Mutex<Option<Statistics>>,
    /// Wakes the device.
    wishes: EventFd,
    /// Tells that there are statistics.
    answered: EventFd,
}

/// How the host asks.
#[derive(Debug, Clone)]
pub struct BalloonHandle(Arc<Shared>);

/// How the device hears of it, and answers.
#[derive(Debug)]
pub(super) struct DeviceEnd(Arc<Shared>);

/// What the host wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wishes {
    pub target_pages: u32,
    pub statistics: bool,
}

pub(super) fn pair(memory_bytes: u64) -> io::Result<(DeviceEnd, BalloonHandle)> {
    let shared = Arc::new(Shared {
        memory_bytes,
        target_pages: AtomicU32::new(0),
        actual_pages: AtomicU32::new(0),
        reported_bytes: AtomicU64::new(0),
        reports_statistics: AtomicBool::new(false),
        statistics_wanted: AtomicBool::new(false),
        statistics: Mutex::new(None),
        wishes: EventFd::new(EFD_NONBLOCK)?,
        answered: EventFd::new(EFD_NONBLOCK)?,
    });
    Ok((DeviceEnd(Arc::clone(&shared)), BalloonHandle(shared)))
}

impl BalloonHandle {
    /// Asks the guest to give up `bytes` in all. It does so as far as it can.
    pub fn set_target(&self, bytes: u64) -> Result<(), BalloonError> {
        let refused = BalloonError::Target {
            found: bytes,
            most: self.0.memory_bytes,
        };
        if bytes > self.0.memory_bytes || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(refused);
        }
        let pages = u32::try_from(bytes / PAGE_BYTES).map_err(|_| refused)?;
        self.0.target_pages.store(pages, Ordering::SeqCst);
        self.wake_device();
        Ok(())
    }

    /// How much the guest is to give up, in bytes.
    pub fn target_bytes(&self) -> u64 {
        u64::from(self.0.target_pages.load(Ordering::SeqCst)) * PAGE_BYTES
    }

    /// How much the guest says it has given up, in bytes.
    pub fn actual_bytes(&self) -> u64 {
        u64::from(self.0.actual_pages.load(Ordering::SeqCst)) * PAGE_BYTES
    }

    /// How many bytes of free pages the guest has reported so far, each as often
    /// as it did.
    pub fn reported_bytes(&self) -> u64 {
        self.0.reported_bytes.load(Ordering::SeqCst)
    }

    /// Asks for statistics; [`Self::answered`] tells when they are there. What was
    /// there before is forgotten.
    pub fn ask_for_statistics(&self) -> Result<(), BalloonError> {
        if !self.0.reports_statistics.load(Ordering::SeqCst) {
            return Err(BalloonError::NoStatistics);
        }
        self.take_statistics();
        self.0.statistics_wanted.store(true, Ordering::SeqCst);
        self.wake_device();
        Ok(())
    }

    /// Readable when there are statistics, until they are taken.
    pub fn answered(&self) -> &EventFd {
        &self.0.answered
    }

    /// The statistics that were asked for, once they are there.
    pub fn take_statistics(&self) -> Option<Statistics> {
        // Empty if nobody has answered.
        let _ = self.0.answered.read();
        self.0
            .statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn wake_device(&self) {
        // Non-blocking; a counter the device has not read yet says the same.
        let _ = self.0.wishes.write(1);
    }
}

impl DeviceEnd {
    pub fn take_wishes(&self) -> Wishes {
        // Before what it tells of is looked at, so that no wish goes unheard.
        let _ = self.0.wishes.read();
        Wishes {
            target_pages: self.0.target_pages.load(Ordering::SeqCst),
            statistics: self.0.statistics_wanted.swap(false, Ordering::SeqCst),
        }
    }

    pub fn set_actual(&self, pages: u32) {
        self.0.actual_pages.store(pages, Ordering::SeqCst);
    }

    pub fn add_reported(&self, bytes: u64) {
        self.0.reported_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    pub fn set_reports_statistics(&self, reports: bool) {
        self.0.reports_statistics.store(reports, Ordering::SeqCst);
    }

    pub fn answer(&self, statistics: Statistics) {
        *self
            .0
            .statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(statistics);
        let _ = self.0.answered.write(1);
    }
}

impl AsFd for DeviceEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the eventfd, of which the
        // borrow is one.
        unsafe { BorrowedFd::borrow_raw(self.0.wishes.as_raw_fd()) }
    }
}
