//! The heap: it only grows. No scenario lives long enough to miss the rest.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

const HEAP_BYTES: usize = 16 << 20;

#[repr(C, align(4096))]
struct Heap {
    bytes: UnsafeCell<[u8; HEAP_BYTES]>,
    used: AtomicUsize,
}

// SAFETY: `used` hands each byte out once.
unsafe impl Sync for Heap {}

// SAFETY: what is returned lies in the heap, is aligned as asked, and is never
// returned again.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut used = self.used.load(Ordering::SeqCst);
        loop {
            // The heap is aligned to a page; nothing here asks for more.
            let start = used.next_multiple_of(layout.align());
            let end = start + layout.size();
            if end > HEAP_BYTES || layout.align() > 4096 {
                return core::ptr::null_mut();
            }
            match self
                .used
                .compare_exchange(used, end, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return self.bytes.get().cast::<u8>().wrapping_add(start),
                Err(now) => used = now,
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise. Nothing is handed out twice, so it is as
        // zero as it was at the start.
        unsafe { self.alloc(layout) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Heap = Heap {
    bytes: UnsafeCell::new([0; HEAP_BYTES]),
    used: AtomicUsize::new(0),
};
