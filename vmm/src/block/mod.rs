//! What stands behind a disk, apart from the device that shows it to a guest.

pub mod buffers;
pub mod extents;

use std::io;

use buffers::Buffers;

/// A disk's content. Offsets and lengths are in bytes and have been checked
/// against [`BlockBackend::size_bytes`] by the caller.
pub trait BlockBackend: Send {
    /// How large the disk is.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills all of `buffers` from `offset` on.
    fn read(&self, offset: u64, buffers: Buffers) -> io::Result<()>;

    /// Writes all of `buffers` at `offset`.
    fn write(&self, offset: u64, buffers: Buffers) -> io::Result<()>;

    /// Makes what was written survive a power loss.
    fn flush(&self) -> io::Result<()>;
}
