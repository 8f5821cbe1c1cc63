//! Limits on what a device moves: token buckets in front of its queues.
//!
//! A bucket fills at a steady rate up to its burst. A request is let through when
//! the bucket holds what it costs or is full, and takes its cost out, below zero
//! if it costs more than a full bucket: then the next one waits for that too. So
//! no request is too large to ever pass, and the rate holds in the long run.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::monotonic_ns;
use crate::timer::Timer;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// Which way a NIC's frames go, as its driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the guest.
    Transmit,
    /// To the guest.
    Receive,
}

/// How much of something, how often. Neither is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u64,
    /// At once, after a rest.
    pub burst: u64,
}

/// The limits of one device, or of one of its directions; what is `None` has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes moved; in both directions together where limits are those of a device.
    pub bandwidth: Option<Rate>,
    /// Requests, or packets.
    pub operations: Option<Rate>,
}

/// A token bucket. Moments are nanoseconds of a clock that does not go back.
#[derive(Debug, Clone)]
struct Bucket {
    rate: Rate,
    /// Tokens times 10⁹, so that nothing is lost by rounding. Between minus 2⁹⁴
    /// and 2⁹⁴, as costs and bursts are below 2⁶⁴.
    balance: i128,
    filled_ns: u64,
}

impl Bucket {
    /// A full one.
    fn new(rate: Rate, now_ns: u64) -> Self {
        Self {
            rate,
            balance: scaled(rate.burst),
            filled_ns: now_ns,
        }
    }

    fn fill(&mut self, now_ns: u64) {
        // A product of two numbers below 2⁶⁴.
        let elapsed = now_ns.saturating_sub(self.filled_ns);
        let earned = u128::from(elapsed) * u128::from(self.rate.per_second);
        let missing = scaled(self.rate.burst) - self.balance;
        self.balance += i128::try_from(earned).map_or(missing, |earned| earned.min(missing));
        self.filled_ns = self.filled_ns.max(now_ns);
    }

    /// How long to wait until `cost` may be taken; `None` if it may be now.
    /// [`Bucket::fill`] comes first.
    fn wait(&self, cost: u64) -> Option<Duration> {
        let missing = scaled(cost.min(self.rate.burst)) - self.balance;
        if missing <= 0 {
            return None;
        }
        let per_second = u128::from(self.rate.per_second.max(1));
        let ns = missing.unsigned_abs().div_ceil(per_second);
        // Of more than five centuries it does not matter how many.
        Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, cost: u64) {
        self.balance -= scaled(cost);
    }
}

/// In units of a token's 10⁻⁹th.
fn scaled(tokens: u64) -> i128 {
    // Below 2⁶⁴ times 2³⁰.
    (u128::from(tokens) * NS_PER_SECOND) as i128
}

/// The buckets of one limiter.
#[derive(Debug, Clone, Default)]
struct Buckets {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    fn new(limits: Limits, now_ns: u64) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now_ns));
        Self {
            bandwidth: bucket(limits.bandwidth),
            operations: bucket(limits.operations),
        }
    }

    /// Takes one operation that moves `bytes`, or says how long to wait for it.
    fn take(&mut self, bytes: u64, now_ns: u64) -> Result<(), Duration> {
        let costs = [(&mut self.bandwidth, bytes), (&mut self.operations, 1)];
        let mut wait = None;
        for (bucket, cost) in costs {
            if let Some(bucket) = bucket {
                bucket.fill(now_ns);
                wait = wait.max(bucket.wait(cost));
            }
        }
        if let Some(wait) = wait {
            return Err(wait);
        }
        for (bucket, cost) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(cost);
            }
        }
        Ok(())
    }
}

/// Lets a device's requests through or makes them wait; never the caller.
#[derive(Debug)]
pub struct Limiter {
    buckets: Buckets,
    timer: Timer,
    waiting: bool,
}

impl Limiter {
    /// Full buckets, and the timer that tells of tokens.
    pub fn new(limits: Limits) -> io::Result<Self> {
        Ok(Self {
            buckets: Buckets::new(limits, monotonic_ns()),
            timer: Timer::new()?,
            waiting: false,
        })
    }

    /// Whether a request that moves `bytes` may be served now; then it is paid
    /// for. Else [`Limiter::timer`] becomes readable when it is worth asking
    /// again.
    pub fn admit(&mut self, bytes: u64) -> bool {
        if self.waiting {
            return false;
        }
        if self.buckets.bandwidth.is_none() && self.buckets.operations.is_none() {
            return true;
        }
        match self.buckets.take(bytes, monotonic_ns()) {
            Ok(()) => true,
            Err(wait) => {
                self.waiting = self.timer.set(wait);
                // Without a timer nobody would ever come back.
                !self.waiting
            }
        }
    }

    /// Changes the limits. The new buckets are full, and what waits may ask again.
    pub fn set(&mut self, limits: Limits) {
        self.buckets = Buckets::new(limits, monotonic_ns());
        if self.waiting {
            self.timer.set(Duration::ZERO);
        }
    }

    /// Readable when a request that was refused should be tried again.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Takes note that the timer was readable.
    pub fn expired(&mut self) {
        self.timer.has_expired();
        self.waiting = false;
    }
}

#[cfg(test)]
mod tests;
