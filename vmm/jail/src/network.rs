//! A network namespace that is made before its process, or while that is made.
//!
//! It takes the kernel longer than all else of a jail together, as each protocol sets
//! up its part of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use rustix::fd::FromRawFd;
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, futex};

/// A network namespace, empty, that another thread makes.
#[derive(Debug)]
pub struct NewNetwork {
    outcome: Arc<Outcome>,
    maker: Option<JoinHandle<()>>,
}

/// What has come of it: [`PENDING`], an errno with [`FAILED`], or else the descriptor.
#[derive(Debug)]
struct Outcome(AtomicU32);

const PENDING: u32 = 0;
const FAILED: u32 = 1 << 31;

impl NewNetwork {
    /// Begins to make one, for a [`crate::Jail`] to enter. `None` without the
    /// privileges for that (`CAP_SYS_ADMIN`).
    pub fn begin() -> io::Result<Option<Self>> {
        if !crate::birth::is_privileged()? {
            return Ok(None);
        }
        let outcome = Arc::new(Outcome(AtomicU32::new(PENDING)));
        let told = Arc::clone(&outcome);
        let maker = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || told.tell(make()))?;
        let maker = Some(maker);
        Ok(Some(Self { outcome, maker }))
    }

    /// Waits until it is made, or not.
    pub fn finish(&self) -> io::Result<()> {
        self.wait()?;
        Ok(())
    }

    /// Waits for the descriptor. System calls only: called by the child too, which
    /// shares memory and descriptors with its parent then.
    pub(crate) fn wait(&self) -> Result<i32, Errno> {
        let word = &self.outcome.0;
        loop {
            match word.load(Ordering::Acquire) {
                PENDING => match futex::wait(word, futex::Flags::PRIVATE, PENDING, None) {
                    Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                },
                failed if failed & FAILED != 0 => {
                    return Err(Errno::from_raw_os_error((failed & !FAILED) as i32));
                }
                descriptor => return Ok(descriptor as i32),
            }
        }
    }
}

impl Outcome {
    fn tell(&self, result: io::Result<OwnedFd>) {
        let value = match result {
            Ok(descriptor) => descriptor.into_raw_fd() as u32,
            Err(error) => FAILED | error.raw_os_error().unwrap_or(libc::EIO) as u32,
        };
        self.0.store(value, Ordering::Release);
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX);
    }
}

/// Of this thread, which does nothing else and ends.
fn make() -> io::Result<OwnedFd> {
    // SAFETY: what this thread leaves is the network namespace; its memory, its
    // descriptors and its root stay the process's.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
    let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
    match namespace.as_raw_fd() {
        // Zero would say that it is not there yet.
        0 => Ok(rustix::io::fcntl_dupfd_cloexec(&namespace, 3)?),
        _ => Ok(namespace),
    }
}

impl Drop for NewNetwork {
    fn drop(&mut self) {
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
        if let Ok(descriptor) = self.wait() {
            // SAFETY: it was let go of in `tell`, for this.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
}
