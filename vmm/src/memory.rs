//! Guest memory: anonymous host memory, mapped on first touch.

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
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

/// Maps `bytes` of guest memory, in one region below the MMIO hole and, where
/// that is not enough, a second one from 4 GiB up.
pub fn create(bytes: u64) -> Result<GuestMemory, MemoryError> {
    let regions = layout::memory_regions(bytes)
        .into_iter()
        .map(|(start, length)| {
            // MAP_NORESERVE: a guest may be promised more than it ever touches.
            let mapping = MmapRegionBuilder::new(length as usize)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
                .build()
                .map_err(|source| MemoryError::Map { bytes, source })?;
            GuestRegionMmap::new(mapping, start).ok_or(MemoryError::Arrange(
                vm_memory::GuestRegionCollectionError::NoMemoryRegion,
            ))
        })
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(regions).map_err(MemoryError::Arrange)
}
