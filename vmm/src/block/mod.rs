//! What stands behind a disk, apart from the device that shows it to a guest.
//!
//! [`extents`] says which range of which file a request means, [`step`] is one
//! system call's worth of it, and two backends run the steps: [`plain`] while the
//! caller waits, [`ring`] through io_uring where they would make it wait. What is read of
//! blobs is [`verified`], and what of them is not on this host yet is asked for ([`lazy`]).

pub mod buffers;
pub mod extents;
pub mod lazy;
pub mod plain;
pub mod ring;
pub mod step;
pub mod verified;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use buffers::Buffers;
use extents::ExtentDisk;
use plain::PlainDisk;
use ring::RingDisk;
use vm_memory::GuestAddress;

/// A range of a disk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Its first byte.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// What a disk is asked to do. Offsets and lengths have been checked against
/// [`BlockBackend::size_bytes`], and that the disk may be written, by the caller.
#[derive(Debug)]
pub enum Operation {
    /// Fill all of the buffers from this byte on.
    Read(u64, Buffers),
    /// Write all of the buffers from this byte on.
    Write(u64, Buffers),
    /// Make what was written survive a power loss.
    Flush,
    /// Forget these ranges: what is read from them afterwards does not matter.
    Discard(Vec<Range>),
    /// Make this range read as zeroes.
    WriteZeroes {
        /// Which.
        range: Range,
        /// Whether its storage may be given back.
        unmap: bool,
    },
}

/// Whose request it is: the device's note to itself, returned with the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The head of the request's chain.
    pub head: u16,
    /// Where its status byte goes.
    pub status: GuestAddress,
    /// How many bytes are written into the chain if it succeeds.
    pub written: u32,
    /// Whether it needs storage.
    pub writes: bool,
}

/// A disk's content. A request is done at once or later, as the backend likes.
pub trait BlockBackend: Send {
    /// How large the disk is.
    fn size_bytes(&self) -> u64;

    /// Whether the disk must not be written.
    fn read_only(&self) -> bool;

    /// Begins `operation`. `Some` is its result; with `None` it is in flight, and
    /// [`BlockBackend::complete`] will return `ticket` once. Only to be called
    /// while there is room.
    fn start(&mut self, ticket: Ticket, operation: Operation) -> Option<io::Result<()>>;

    /// Whether another request could be in flight.
    fn has_room(&self) -> bool {
        true
    }

    /// Hands what was begun to the host, after one or more calls of
    /// [`BlockBackend::start`] or [`BlockBackend::complete`].
    fn submit(&mut self) {}

    /// A request that was in flight and is done, if there is one.
    fn complete(&mut self) -> Option<(Ticket, io::Result<()>)> {
        None
    }

    /// Readable when requests that were in flight are done.
    fn completions(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes note that [`BlockBackend::completions`] was readable.
    fn acknowledge(&mut self) {}

    /// Makes [`BlockBackend::completions`] readable.
    fn wake(&mut self) {}

    /// Waits until nothing is in flight, but no longer than `patience`, and forgets what
    /// is done. Returns whether nothing is left; only then is no byte of guest memory
    /// read or written by what was begun before.
    fn wait(&mut self, _patience: Duration) -> bool {
        true
    }
}

/// How long a driver's reset of a disk may take before the driver is told that it is
/// not over yet. What waits meanwhile is the vCPU, and the event loop if it has
/// something for this device. A disk at work answers within milliseconds, a busy one
/// within this; one that hangs, such as a file of a server that is gone, never does.
pub const RESET_PATIENCE: Duration = Duration::from_secs(1);

/// The quickest backend that this host has for `disk`.
pub fn open(disk: ExtentDisk) -> Box<dyn BlockBackend> {
    if disk.files().iter().all(|file| ring::in_memory(file)) {
        return Box::new(PlainDisk::new(disk));
    }
    match RingDisk::new(disk) {
        Ok(disk) => Box::new(disk),
        // No io_uring here, or not for us: an old kernel, the sysctl
        // kernel.io_uring_disabled, a seccomp filter of the parent's.
        Err((disk, _)) => Box::new(PlainDisk::new(disk)),
    }
}
