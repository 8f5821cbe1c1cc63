//! Buckets against arithmetic without rounding, in a time that the test makes.

use proptest::prelude::*;

use super::*;

fn rate(per_second: u64, burst: u64) -> Rate {
    Rate { per_second, burst }
}

fn any_rate() -> impl Strategy<Value = Rate> {
    let number = || prop_oneof![1_u64..100, 1_u64..1 << 32, Just(u64::MAX), 1..u64::MAX];
    (number(), number()).prop_map(|(per_second, burst)| rate(per_second, burst))
}

fn any_cost() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..200, 0_u64..1 << 33, Just(u64::MAX)]
}

proptest! {
    /// What passes in all is what was there at first, what came in since, and at
    /// most one request that was larger than the bucket.
    #[test]
    fn no_more_passes_than_burst_and_rate_allow(
        rate in any_rate(),
        requests in proptest::collection::vec((any_cost(), 0_u64..3_000_000_000), 1..60),
    ) {
        let mut now_ns = 1_000;
        let mut bucket = Bucket::new(rate, now_ns);
        let (mut passed, mut largest) = (0_u128, 0);
        for (cost, pause_ns) in requests {
            now_ns += pause_ns;
            bucket.fill(now_ns);
            if bucket.wait(cost).is_some() {
                continue;
            }
            bucket.take(cost);
            largest = largest.max(cost);
            passed += u128::from(cost) * NS_PER_SECOND;
            let earned = u128::from(now_ns - 1_000) * u128::from(rate.per_second);
            let credit = u128::from(rate.burst.max(largest)) * NS_PER_SECOND;
            prop_assert!(passed <= earned + credit);
        }
    }

    /// The same from any moment to any later one.
    #[test]
    fn in_no_window_more_passes_than_burst_and_rate_allow(
        rate in any_rate(),
        requests in proptest::collection::vec((any_cost(), 0_u64..3_000_000_000), 1..40),
    ) {
        let mut now_ns = 0;
        let mut bucket = Bucket::new(rate, now_ns);
        let mut passed = Vec::new();
        for (cost, pause_ns) in requests {
            now_ns += pause_ns;
            bucket.fill(now_ns);
            if bucket.wait(cost).is_none() {
                bucket.take(cost);
                passed.push((now_ns, cost));
            }
        }
        for (first, (begin_ns, _)) in passed.iter().enumerate() {
            let (mut sum, mut largest) = (0_u128, 0);
            for (end_ns, cost) in &passed[first..] {
                largest = largest.max(*cost);
                sum += u128::from(*cost) * NS_PER_SECOND;
                let earned = u128::from(end_ns - begin_ns) * u128::from(rate.per_second);
                let credit = u128::from(rate.burst.max(largest)) * NS_PER_SECOND;
                prop_assert!(sum <= earned + credit);
            }
        }
    }

    /// A request that waits as long as it is told passes, and not earlier: the
    /// simple model keeps a balance in whole tokens times 10⁹.
    #[test]
    fn a_wait_is_as_long_as_it_must_be(
        per_second in 1_u64..1 << 40,
        burst in 1_u64..1 << 40,
        costs in proptest::collection::vec(0_u64..1 << 41, 1..40),
    ) {
        let rate = rate(per_second, burst);
        let mut now_ns = 5;
        let mut bucket = Bucket::new(rate, now_ns);
        let full = i128::from(burst) * 1_000_000_000;
        let mut model = full;
        for cost in costs {
            let wanted = i128::from(cost.min(burst)) * 1_000_000_000;
            bucket.fill(now_ns);
            let wait = bucket.wait(cost);
            prop_assert_eq!(wait.is_none(), model >= wanted);
            if let Some(wait) = wait {
                let ns = wait.as_nanos() as u64;
                let mut early = bucket.clone();
                early.fill(now_ns + ns - 1);
                prop_assert!(early.wait(cost).is_some());
                now_ns += ns;
                model = full.min(model + i128::from(ns) * i128::from(per_second));
                bucket.fill(now_ns);
                prop_assert_eq!(bucket.wait(cost), None);
            }
            bucket.take(cost);
            model -= i128::from(cost) * 1_000_000_000;
        }
    }

    #[test]
    fn no_number_is_too_large(
        rate in any_rate(),
        moments in proptest::collection::vec((any::<u64>(), any_cost()), 1..20),
    ) {
        let mut bucket = Bucket::new(rate, 0);
        for (now_ns, cost) in moments {
            bucket.fill(now_ns);
            if bucket.wait(cost).is_none() {
                bucket.take(cost);
            }
        }
    }
}

#[test]
fn a_request_must_fit_both_limits_and_pays_neither_if_it_does_not() {
    let limits = Limits {
        bandwidth: Some(rate(100, 100)),
        operations: Some(rate(1, 2)),
    };
    let mut buckets = Buckets::new(limits, 0);
    assert_eq!(buckets.take(60, 0), Ok(()));
    // 20 bytes are missing, no operation is.
    assert_eq!(buckets.take(60, 0), Err(Duration::from_millis(200)));
    assert_eq!(buckets.take(40, 0), Ok(()));
    // Now an operation is, and no byte.
    assert_eq!(buckets.take(0, 0), Err(Duration::from_secs(1)));
    assert_eq!(buckets.take(0, 1_000_000_000), Ok(()));
}

#[test]
fn what_must_wait_is_told_by_the_timer() {
    let mut limiter = Limiter::new(Limits {
        bandwidth: None,
        operations: Some(rate(100, 1)),
    })
    .unwrap();
    assert!(limiter.admit(1 << 40));
    while limiter.admit(0) {}
    let mut watched = [rustix::event::PollFd::new(
        &limiter.timer,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(rustix::event::poll(&mut watched, None), Ok(1));
    limiter.expired();
    assert!(limiter.admit(0));
}

#[test]
fn new_limits_hold_at_once_and_wake_what_waits() {
    let slow = Some(rate(1, 1));
    let mut limiter = Limiter::new(Limits {
        bandwidth: slow,
        operations: None,
    })
    .unwrap();
    assert!(limiter.admit(1_000_000));
    assert!(!limiter.admit(1));
    limiter.set(Limits::default());
    let mut watched = [rustix::event::PollFd::new(
        &limiter.timer,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(rustix::event::poll(&mut watched, None), Ok(1));
    limiter.expired();
    assert!((0..100).all(|_| limiter.admit(u64::MAX)));
    limiter.set(Limits {
        bandwidth: None,
        operations: slow,
    });
    assert!(limiter.admit(u64::MAX));
    assert!(!limiter.admit(0));
}
