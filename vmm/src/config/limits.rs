//! How much a device may move.

use super::error::{ConfigError, in_range};
use crate::devices::virtio::limiter::{Limits, Rate};
use crate::spec::{LimitsSpec, RateSpec};

/// Bytes or operations of a limit: more than any device moves.
const MAX_RATE: u64 = 1 << 40;

/// Limits within their ranges; `field` is where they stand, for the error.
pub fn limits(spec: Option<LimitsSpec>, field: &str) -> Result<Limits, ConfigError> {
    let Some(spec) = spec else {
        return Ok(Limits::default());
    };
    let rate = |rate: Option<RateSpec>, name: &str| {
        let number = |number, part| {
            let field = format!("{field}.{name}.{part}");
            in_range(&field, number, 1..=MAX_RATE, format!("1 to {MAX_RATE}"))
        };
        rate.map(|rate| {
            Ok::<_, ConfigError>(Rate {
                per_second: number(rate.per_second, "per_second")?,
                burst: number(rate.burst, "burst")?,
            })
        })
        .transpose()
    };
    Ok(Limits {
        bandwidth: rate(spec.bandwidth, "bandwidth")?,
        operations: rate(spec.operations, "operations")?,
    })
}
