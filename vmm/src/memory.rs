//! Guest memory, mapped on first touch: anonymous and private, or a file in memory
//! that other processes can have too.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::arch::layout;

/// The guest memory of one microVM.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no room in the address space, or forbids the mapping.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// How much was asked for.
        bytes: u64,
        /// What `mmap(2)` said.
        source: MmapRegionError,
    },
    /// The host has no memory for a file, or a limit is in the way (`RLIMIT_FSIZE`).
    #[error("cannot make a file of {bytes} bytes for guest memory (memfd_create)")]
    File {
        /// How much was asked for.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The regions do not fit together: a defect of the memory layout.
    #[error("cannot arrange guest memory")]
    Arrange(#[source] vm_memory::GuestRegionCollectionError),
}

/// The size of a huge page of x86-64, and of what KVM maps by one.
const HUGE_PAGE_BYTES: usize = 2 << 20;

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Maps `bytes` of guest memory, in one region below the MMIO hole and, where
/// that is not enough, a second one from 4 GiB up.
///
/// It stays mapped until the process ends, as the microVM does.
pub fn create(bytes: u64) -> Result<GuestMemory, MemoryError> {
    arrange(bytes, |length, _| map(length))
}

/// The same in a file that can be given to other processes: the regions of
/// [`create`] one after the other ([`GuestRegionMmap`]'s `file_offset`). Its size is
/// sealed, so that none of those can take memory away from under this process.
///
/// Costs more than private memory: the host gives a file no huge pages unless its
/// administrator asks for them (`shmem_enabled`).
pub fn create_shared(bytes: u64) -> Result<GuestMemory, MemoryError> {
    let file = sealed_file(bytes).map_err(|source| MemoryError::File { bytes, source })?;
    let file = Arc::new(file);
    arrange(bytes, |length, offset| map_file(length, &file, offset))
}

/// Whether [`create_shared`] made `memory`.
pub fn is_shared(memory: &GuestMemory) -> bool {
    memory
        .iter()
        .any(|region| region.flags() & libc::MAP_SHARED != 0)
}

fn sealed_file(bytes: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("guest-memory", flags)?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Makes each region by `map`, of its length and of those before it.
fn arrange(
    bytes: u64,
    map: impl Fn(usize, u64) -> Result<MmapRegion, MmapRegionError>,
) -> Result<GuestMemory, MemoryError> {
    let mut offset = 0;
    let regions = layout::memory_regions(bytes)
        .into_iter()
        .map(|(start, length)| {
            let mapping = map(length as usize, offset)
                .map_err(|source| MemoryError::Map { bytes, source })?;
            offset += length;
            GuestRegionMmap::new(mapping, start).ok_or(MemoryError::Arrange(
                vm_memory::GuestRegionCollectionError::NoMemoryRegion,
            ))
        })
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(regions).map_err(MemoryError::Arrange)
}

/// Maps `length` bytes at a multiple of [`HUGE_PAGE_BYTES`]. Otherwise KVM maps
/// each 4 KiB of them by a fault of its own, even where the host has given a
/// huge page: it does so in all of a memslot whose host and guest addresses are
/// not aligned alike (`kvm_alloc_memslot_metadata` in Linux).
fn map(length: usize) -> Result<MmapRegion, MmapRegionError> {
    // MAP_NORESERVE: a guest may be promised more than it ever touches.
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start = reserve(length, FLAGS)?;
    // SAFETY: from `start`, `length` bytes stay mapped as they are said to be.
    unsafe { MmapRegion::build_raw(start, length, PROTECTION, FLAGS) }
}

/// Maps `length` bytes of `file` from `offset` on, aligned as [`map`] does.
fn map_file(length: usize, file: &Arc<File>, offset: u64) -> Result<MmapRegion, MmapRegionError> {
    const RESERVED: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start = reserve(length, RESERVED)?;
    let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: takes the place of a mapping of `length` bytes made above, of which
    // nobody else knows.
    let mapped = unsafe {
        mmap(
            start.cast(),
            length,
            protection,
            flags,
            file.as_fd(),
            offset,
        )
    };
    let start = mapped.map_err(|errno| MmapRegionError::Mmap(errno.into()))?;
    let builder = MmapRegionBuilder::new(length)
        .with_mmap_prot(PROTECTION)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
    // SAFETY: from `start`, `length` bytes stay mapped as they are said to be.
    unsafe { builder.with_raw_mmap_pointer(start.cast()) }.build()
}

/// `length` bytes that stay mapped, at a multiple of [`HUGE_PAGE_BYTES`].
fn reserve(length: usize, flags: i32) -> Result<*mut u8, MmapRegionError> {
    let with_margin: MmapRegion = MmapRegionBuilder::new(length.saturating_add(HUGE_PAGE_BYTES))
        .with_mmap_prot(PROTECTION)
        .with_mmap_flags(flags)
        .build()?;
    let start = with_margin.as_ptr();
    // Less than HUGE_PAGE_BYTES into a mapping that is that much longer.
    let start = start.wrapping_add(start.align_offset(HUGE_PAGE_BYTES));
    // Never unmapped, so that a part of it may be lent out for good.
    std::mem::forget(with_margin);
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn regions_begin_on_huge_pages_and_are_usable_to_their_last_byte() {
        let memory = create(5 << 30).unwrap();
        assert_eq!(memory.num_regions(), 2);
        for region in memory.iter() {
            assert!(region.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES));
            assert!(region.start_addr().0.is_multiple_of(HUGE_PAGE_BYTES as u64));
            memory.write_obj(1u8, region.last_addr()).unwrap();
        }
        assert!(memory.write_obj(1u8, GuestAddress(6 << 30)).is_err());
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(matches!(create(1 << 60), Err(MemoryError::Map { .. })));
        assert!(create_shared(1 << 60).is_err());
    }

    #[test]
    fn shared_memory_is_a_file_of_its_size_for_good() {
        use std::os::unix::fs::FileExt;

        let memory = create_shared(5 << 30).unwrap();
        assert!(is_shared(&memory) && !is_shared(&create(1 << 20).unwrap()));
        for (region, number) in memory.iter().zip(1_u8..) {
            assert!(region.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES));
            memory.write_obj(number, region.last_addr()).unwrap();
            let place = region.file_offset().unwrap();
            let mut found = [0];
            let end = place.start() + region.len();
            place.file().read_exact_at(&mut found, end - 1).unwrap();
            assert_eq!(found, [number]);
            for bytes in [0, (5 << 30) - 1, (5 << 30) + 1] {
                assert!(place.file().set_len(bytes).is_err());
            }
        }
    }
}
