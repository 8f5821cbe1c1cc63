//! What the guest says of its memory (virtio 1.3, section 5.5.6.3). Nothing here is
//! true but by the guest's word; nothing is decided by it.

use std::io::Read;

use super::super::queues::Chain;
use crate::memory::GuestMemory;

/// `struct virtio_balloon_stat`, packed: tag, value.
const ENTRY_BYTES: usize = 10;
/// More than there are tags. A driver's buffer may be longer; the rest is not read.
const MAX_ENTRIES: usize = 32;

/// One snapshot. What the guest did not say is `None`; what it said twice is what
/// it said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes swapped in.
    pub swap_in_bytes: Option<u64>,
    /// Bytes swapped out.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Memory that nothing is in.
    pub free_bytes: Option<u64>,
    /// All memory.
    pub total_bytes: Option<u64>,
    /// Memory that new programs could have without swapping.
    pub available_bytes: Option<u64>,
    /// Memory that holds files and can be reclaimed.
    pub disk_cache_bytes: Option<u64>,
    /// Huge pages allocated for `hugetlbfs`.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
}

impl Statistics {
    /// Copies what `chain` holds, up to a bound.
    pub(super) fn read(memory: &GuestMemory, chain: Chain) -> Result<Self, &'static str> {
        let outside = "a statistics buffer lies outside guest memory";
        let mut buffer = chain.reader(memory).map_err(|_| outside)?;
        let entries = (buffer.available_bytes() / ENTRY_BYTES).min(MAX_ENTRIES);
        let mut bytes = [0; MAX_ENTRIES * ENTRY_BYTES];
        let bytes = &mut bytes[..entries * ENTRY_BYTES];
        buffer.read_exact(bytes).map_err(|_| outside)?;
        let mut statistics = Self::default();
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            let [t0, t1, value @ ..] = entry else {
                continue;
            };
            let mut number = [0; 8];
            number.copy_from_slice(value);
            let tag = u16::from_le_bytes([*t0, *t1]);
            // Tags of later standards are skipped.
            if let Some(field) = statistics.field(tag) {
                *field = Some(u64::from_le_bytes(number));
            }
        }
        Ok(statistics)
    }

    /// The field of a tag (section 5.5.6.4).
    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in_bytes,
            1 => &mut self.swap_out_bytes,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_bytes,
            5 => &mut self.total_bytes,
            6 => &mut self.available_bytes,
            7 => &mut self.disk_cache_bytes,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            _ => return None,
        })
    }
}
