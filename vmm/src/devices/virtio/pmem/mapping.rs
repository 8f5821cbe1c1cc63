//! A file in the address space of this process, to be lent to KVM and to nobody else.
//!
//! An access past the end of a file that has shrunk raises SIGBUS here, and so does one
//! to storage that has failed. The guest's accesses do not come this way: KVM takes the
//! pages from the mapping without touching them, and leaves the guest where it cannot
//! (`KVM_RUN` fails with EFAULT), which ends the microVM in order. So no pointer into
//! the mapping is ever read or written, and it is not part of [`crate::memory`], which
//! devices read and write at a guest's word.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use crate::arch::layout::PMEM_ALIGNMENT;

/// A mapping that lasts as long as the process.
#[derive(Debug)]
pub struct Mapping {
    address: u64,
    bytes: u64,
    read_only: bool,
}

impl Mapping {
    /// Maps the first `file_bytes` of `file`, shared with all others who do. What is
    /// missing to a multiple of [`PMEM_ALIGNMENT`] reads as zeroes.
    pub fn new(file: &File, file_bytes: u64, read_only: bool) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let alignment = PMEM_ALIGNMENT as usize;
        let length = usize::try_from(file_bytes).map_err(|_| too_large())?;
        let bytes = length
            .checked_next_multiple_of(alignment)
            .ok_or_else(too_large)?;
        let with_margin = bytes.checked_add(alignment).ok_or_else(too_large)?;
        let zeroes = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping where the kernel likes, which changes no other.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), with_margin, ProtFlags::READ, zeroes)? };
        let start = start.wrapping_byte_add(start.cast::<u8>().align_offset(alignment));
        let protection = match read_only {
            true => ProtFlags::READ,
            false => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: takes the place of a part of the mapping made above, of which nobody
        // else knows: from `start`, less than the margin into it, it goes on for
        // `bytes`, which are `length` or more.
        let start = unsafe { mmap(start, length, protection, flags, file.as_fd(), 0)? };
        Ok(Self {
            address: start.addr() as u64,
            bytes: bytes as u64,
            read_only,
        })
    }

    /// Where it is in this process, a multiple of [`PMEM_ALIGNMENT`].
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size, a multiple of [`PMEM_ALIGNMENT`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it must not be written.
    pub fn read_only(&self) -> bool {
        self.read_only
    }
}
