//! The host's side of a console: how large the terminal is.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// From left to right.
    pub columns: u16,
    /// From top to bottom.
    pub rows: u16,
}

impl Size {
    /// As one number, so that nobody sees half of a change.
    fn pack(self) -> u32 {
        u32::from(self.columns) << 16 | u32::from(self.rows)
    }

    fn unpack(packed: u32) -> Self {
        Self {
            columns: (packed >> 16) as u16,
            rows: packed as u16,
        }
    }
}

#[derive(Debug)]
struct Shared {
    name: String,
    size: AtomicU32,
    /// Wakes the device.
    changed: EventFd,
}

/// How the host tells of another size.
#[derive(Debug, Clone)]
pub struct ConsoleHandle(Arc<Shared>);

/// How the device hears of it.
#[derive(Debug)]
pub(super) struct DeviceEnd(Arc<Shared>);

pub(super) fn pair(name: String, size: Size) -> io::Result<(DeviceEnd, ConsoleHandle)> {
    let shared = Arc::new(Shared {
        name,
        size: AtomicU32::new(size.pack()),
        changed: EventFd::new(EFD_NONBLOCK)?,
    });
    Ok((DeviceEnd(Arc::clone(&shared)), ConsoleHandle(shared)))
}

impl ConsoleHandle {
    /// The device's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The terminal has this size now.
    pub fn resize(&self, size: Size) {
        self.0.size.store(size.pack(), Ordering::SeqCst);
        // Non-blocking; a counter the device has not read yet says the same.
        let _ = self.0.changed.write(1);
    }
}

impl DeviceEnd {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn size(&self) -> Size {
        // Before the size is looked at, so that no change goes unheard.
        let _ = self.0.changed.read();
        Size::unpack(self.0.size.load(Ordering::SeqCst))
    }
}

impl AsFd for DeviceEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the eventfd, of which the
        // borrow is one.
        unsafe { BorrowedFd::borrow_raw(self.0.changed.as_raw_fd()) }
    }
}
