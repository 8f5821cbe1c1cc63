//! What many measurements say.

use serde::{Deserialize, Serialize};

/// A number of measurements of one thing, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distribution {
    /// Half of them are at most this.
    pub p50_ms: f64,
    /// All but one in a hundred are at most this.
    pub p99_ms: f64,
    /// The least.
    pub min_ms: f64,
    /// The greatest.
    pub max_ms: f64,
    /// All of them, in ascending order.
    pub sorted_ms: Vec<f64>,
}

impl Distribution {
    /// Summarizes `samples_ms`; `None` if there are none.
    pub fn of(mut samples_ms: Vec<f64>) -> Option<Self> {
        samples_ms.sort_by(f64::total_cmp);
        Some(Self {
            p50_ms: percentile(&samples_ms, 50)?,
            p99_ms: percentile(&samples_ms, 99)?,
            min_ms: *samples_ms.first()?,
            max_ms: *samples_ms.last()?,
            sorted_ms: samples_ms,
        })
    }
}

/// A few measurements of one thing, in the unit of that thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of them are at most this.
    pub p50: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// All of them, in the order they were made.
    pub values: Vec<f64>,
}

impl Spread {
    /// Summarizes `values`; `None` if there are none.
    pub fn of(values: Vec<f64>) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            p50: percentile(&sorted, 50)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
            values,
        })
    }
}

/// The nearest-rank percentile: the least of the measurements that `percent` of
/// them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(range: std::ops::RangeInclusive<u32>) -> Distribution {
        Distribution::of(range.rev().map(f64::from).collect()).unwrap()
    }

    #[test]
    fn percentiles_are_measurements() {
        let hundred = of(1..=100);
        assert_eq!((hundred.p50_ms, hundred.p99_ms), (50.0, 99.0));
        let three = of(1..=3);
        assert_eq!((three.p50_ms, three.p99_ms), (2.0, 3.0));
        let one = of(7..=7);
        assert_eq!((one.p50_ms, one.p99_ms), (7.0, 7.0));
    }

    #[test]
    fn extremes_are_the_first_and_the_last() {
        let distribution = of(3..=9);
        assert_eq!((distribution.min_ms, distribution.max_ms), (3.0, 9.0));
        assert!(distribution.sorted_ms.is_sorted());
    }

    #[test]
    fn a_spread_keeps_the_order_of_what_it_was_made_of() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.p50, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(spread.values, [3.0, 1.0, 2.0]);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn nothing_has_no_distribution() {
        assert_eq!(Distribution::of(Vec::new()), None);
    }
}
