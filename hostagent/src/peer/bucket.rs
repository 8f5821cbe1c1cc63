//! How much may be sent or received in a time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bucket of tokens, one for each byte. Whoever takes more than there are waits until
/// they have come, and so does everybody after.
#[derive(Debug)]
pub(super) struct Bucket {
    bytes_per_second: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Below zero where more was taken than there was.
    tokens: i128,
    /// When they were counted.
    counted: Instant,
}

const NANOS: i128 = 1_000_000_000;
/// A bucket holds what comes in so much of a second: enough to even out how late a sleep
/// ends.
const BURST_PART: u64 = 10;

impl Bucket {
    /// A full one.
    pub fn new(bytes_per_second: u64) -> Self {
        let bucket = Self {
            bytes_per_second: bytes_per_second.max(1),
            state: Mutex::new(State {
                tokens: 0,
                counted: Instant::now(),
            }),
        };
        bucket.lock().tokens = bucket.full();
        bucket
    }

    /// Takes tokens, and waits until they are there.
    pub async fn take(&self, bytes: usize) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes tokens; returns how long to wait for them.
    fn reserve(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = self.lock();
        let passed = now.saturating_duration_since(state.counted).as_nanos();
        let rate = i128::from(self.bytes_per_second);
        // Counted in parts of a token, so that none is lost by counting often.
        let come = i128::try_from(passed)
            .unwrap_or(i128::MAX / rate)
            .saturating_mul(rate);
        state.tokens = state.tokens.saturating_add(come).min(self.full());
        state.counted = state.counted.max(now);
        state.tokens = state
            .tokens
            .saturating_sub((bytes as i128).saturating_mul(NANOS));
        let missing = state.tokens.min(0).unsigned_abs() / rate.unsigned_abs();
        Duration::from_nanos(u64::try_from(missing).unwrap_or(u64::MAX))
    }

    fn full(&self) -> i128 {
        i128::from(self.bytes_per_second / BURST_PART) * NANOS
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for tokens where there is a limit.
pub(super) async fn take(bucket: &Option<Bucket>, bytes: usize) {
    if let Some(bucket) = bucket {
        bucket.take(bytes).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_bucket_gives_a_tenth_of_a_second_at_once_and_the_rest_in_time() {
        let bucket = Bucket::new(1000);
        let start = bucket.lock().counted;
        assert_eq!(bucket.reserve(100, start), Duration::ZERO);
        assert_eq!(bucket.reserve(500, start), Duration::from_millis(500));
        assert_eq!(bucket.reserve(500, start), Duration::from_secs(1));
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.reserve(101, later), Duration::from_millis(1));
    }

    proptest! {
        #[test]
        fn never_is_more_given_than_has_come(
            rate in 1_u64..10_000_000_000,
            takes in proptest::collection::vec((0_usize..10_000_000, 0_u64..2_000_000_000), 1..50),
        ) {
            let bucket = Bucket::new(rate);
            let start = bucket.lock().counted;
            let mut now = start;
            let mut given = 0_u128;
            for (bytes, pause) in takes {
                now += Duration::from_nanos(pause);
                let wait = bucket.reserve(bytes, now);
                given += bytes as u128;
                let until = (now + wait).duration_since(start).as_nanos();
                let come = (until + 1) * u128::from(rate) / NANOS as u128 + u128::from(rate / BURST_PART) + 1;
                prop_assert!(given <= come, "{given} of {come}");
                now += wait;
            }
        }
    }
}
