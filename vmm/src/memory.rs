//! Guest memory: anonymous host memory, mapped on first touch.

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

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
    /// The regions do not fit together: a defect of the memory layout.
    #[error("cannot arrange guest memory")]
    Arrange(#[source] vm_memory::GuestRegionCollectionError),
}

/// The size of a huge page of x86-64, and of what KVM maps by one.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Maps `bytes` of guest memory, in one region below the MMIO hole and, where
/// that is not enough, a second one from 4 GiB up.
///
/// It stays mapped until the process ends, as the microVM does.
pub fn create(bytes: u64) -> Result<GuestMemory, MemoryError> {
    let regions = layout::memory_regions(bytes)
        .into_iter()
        .map(|(start, length)| {
            let mapping =
                map(length as usize).map_err(|source| MemoryError::Map { bytes, source })?;
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
    const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
    // MAP_NORESERVE: a guest may be promised more than it ever touches.
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let with_margin: MmapRegion = MmapRegionBuilder::new(length.saturating_add(HUGE_PAGE_BYTES))
        .with_mmap_prot(PROTECTION)
        .with_mmap_flags(FLAGS)
        .build()?;
    let start = with_margin.as_ptr();
    let start = start.wrapping_add(start.align_offset(HUGE_PAGE_BYTES));
    // Never unmapped, so that a part of it may be lent out for good.
    std::mem::forget(with_margin);
    // SAFETY: from `start`, less than HUGE_PAGE_BYTES into a mapping that is
    // that much longer, `length` bytes stay mapped as they are said to be.
    unsafe { MmapRegion::build_raw(start, length, PROTECTION, FLAGS) }
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
    }
}
