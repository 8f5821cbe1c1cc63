//! How pages go back to the host.
//!
//! Private guest memory is anonymous ([`crate::memory`]), so that `MADV_DONTNEED` frees
//! it; from shared memory `MADV_REMOVE` takes the pages, for all who have it. The guest
//! reads zeroes there when it comes back (madvise(2)).

use std::io::Read;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::super::queues::Chain;
use crate::memory::{self, GuestMemory};

/// The unit of page numbers (virtio 1.3, section 5.5.6): 4096 whatever the guest's
/// or the host's pages are.
pub const PAGE_BYTES: u64 = 4096;

/// Page numbers read at once, on the stack; as many as Linux sends in one request.
const PAGES_A_READ: usize = 256;
const NUMBER_BYTES: usize = 4;

/// Whether all of the range is guest memory.
pub fn is_memory(memory: &GuestMemory, start: GuestAddress, bytes: u64) -> bool {
    memory
        .get_slices(start, bytes as usize)
        .all(|slice| slice.is_ok())
}

/// Gives the host the whole pages within a range of guest memory. What of it is not
/// guest memory is left alone.
pub fn discard(memory: &GuestMemory, start: GuestAddress, bytes: u64) {
    let Some(end) = start.0.checked_add(bytes) else {
        return;
    };
    let Some(first) = start.0.checked_next_multiple_of(PAGE_BYTES) else {
        return;
    };
    let end = end / PAGE_BYTES * PAGE_BYTES;
    let Some(length) = end.checked_sub(first) else {
        return;
    };
    let advice = match memory::is_shared(memory) {
        true => libc::MADV_REMOVE,
        false => libc::MADV_DONTNEED,
    };
    for slice in memory.get_slices(GuestAddress(first), length as usize) {
        // Past a region's end there is nothing to discard.
        let Ok(slice) = slice else { return };
        let guard = slice.ptr_guard_mut();
        // SAFETY: the range lies inside one region of guest memory, which stays
        // mapped until the process ends (`memory::create`). The kernel replaces its
        // pages by zeroes, which is a write as the guest could do it: no Rust
        // reference to that memory exists.
        // It may fail for memory that is locked; then the host just keeps it.
        let _ = unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), advice) };
    }
}

/// Reads the page numbers in `chain` and calls `act` with each run of pages: where
/// it starts, and its bytes. A run never has the same page twice.
///
/// Fails for more than `most` numbers, and at the first page that is not guest
/// memory; no page is acted on of which a number has not been looked at.
pub fn for_each_run(
    memory: &GuestMemory,
    chain: Chain,
    most: usize,
    mut act: impl FnMut(GuestAddress, u64),
) -> Result<(), &'static str> {
    let mut list = chain
        .reader(memory)
        .map_err(|_| "a list of page numbers lies outside guest memory")?;
    if list.available_bytes() > most * NUMBER_BYTES {
        return Err("a list of more page numbers than one request may have");
    }
    let mut bytes = [0; PAGES_A_READ * NUMBER_BYTES];
    let mut numbers = [0_u32; PAGES_A_READ];
    loop {
        // Whole numbers; what is left of less than one says nothing.
        let count = (list.available_bytes() / NUMBER_BYTES).min(PAGES_A_READ);
        if count == 0 {
            return Ok(());
        }
        let (bytes, numbers) = (&mut bytes[..count * NUMBER_BYTES], &mut numbers[..count]);
        list.read_exact(bytes)
            .map_err(|_| "a list of page numbers lies outside guest memory")?;
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(NUMBER_BYTES)) {
            *number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        // Drivers list pages in any order; one call for each run is what costs.
        numbers.sort_unstable();
        let runs = || numbers.chunk_by(|one, next| next - one <= 1);
        let range = |run: &[u32]| {
            let (first, last) = (run[0], run[run.len() - 1]);
            let start = GuestAddress(u64::from(first) * PAGE_BYTES);
            (start, (u64::from(last - first) + 1) * PAGE_BYTES)
        };
        for (start, bytes) in runs().map(range) {
            if !is_memory(memory, start, bytes) {
                return Err("a page that is not guest memory");
            }
        }
        runs()
            .map(range)
            .for_each(|(start, bytes)| act(start, bytes));
    }
}
