//! A histogram of times whose buckets grow by powers of two.

use std::sync::atomic::{AtomicU64, Ordering};

/// The number of buckets. The last one begins at 2³⁹ ns: nine minutes.
pub const BUCKETS: usize = 40;

/// Bucket `n` counts times of 2ⁿ to 2ⁿ⁺¹ − 1 nanoseconds; the first one less too, the
/// last one more too.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Histogram {
    /// How many times were that long.
    pub buckets: [AtomicU64; BUCKETS],
    /// The sum of all, in nanoseconds; it wraps.
    pub sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts a time.
    pub fn record(&self, ns: u64) {
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// The bucket that counts `ns`: less than [`BUCKETS`].
pub fn bucket_of(ns: u64) -> usize {
    let power = ns.checked_ilog2().unwrap_or(0);
    (power as usize).min(BUCKETS - 1)
}
