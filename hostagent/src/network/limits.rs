//! Limits of a NIC, as `--network` has them: `transmit-bps=RATE[:BURST]` for the bytes a
//! second from the guest, `transmit-pps` for the packets, and `receive-bps` and
//! `receive-pps` for those to the guest.

use vmm::spec::{LimitsSpec, NicLimitsSpec, RateSpec};

use crate::size;

/// What they are called.
pub const KEYS: [&str; 4] = ["transmit-bps", "transmit-pps", "receive-bps", "receive-pps"];

/// The longest packet: so much may pass at once at least, for its parts not to wait.
pub const MIN_BURST_BYTES: u64 = 64 << 10;
/// As many as come at once when somebody answers.
pub const MIN_BURST_PACKETS: u64 = 16;
/// Without another burst: what comes together in a tenth of a second.
const BURSTS_PER_SECOND: u64 = 10;
/// What the VMM takes.
const MAX: u64 = 1 << 40;

/// Reads a list of them with commas between, or `none`, which has all lifted.
pub fn parse_list(text: &str) -> Result<NicLimitsSpec, String> {
    let free = LimitsSpec {
        bandwidth: None,
        operations: None,
    };
    if text == "none" {
        return Ok(NicLimitsSpec {
            transmit: Some(free),
            receive: Some(free),
        });
    }
    let mut values = [None; KEYS.len()];
    for part in text.split(',') {
        let pair = part.split_once('=');
        let found = pair.and_then(|(key, value)| {
            let index = KEYS.iter().position(|known| *known == key)?;
            Some((index, value))
        });
        let (index, value) = found
            .ok_or_else(|| format!("{part:?} is not none or one of {}=RATE", KEYS.join(", ")))?;
        if values[index].replace(value).is_some() {
            return Err(format!("{} is given twice", KEYS[index]));
        }
    }
    Ok(parse(values)?.unwrap_or(NicLimitsSpec {
        transmit: None,
        receive: None,
    }))
}

/// Reads the values of [`KEYS`].
pub fn parse(values: [Option<&str>; KEYS.len()]) -> Result<Option<NicLimitsSpec>, String> {
    let rate = |index: usize, least| {
        let value: Option<&str> = values[index];
        value
            .map(|value| rate(value, least).map_err(|problem| format!("{} {problem}", KEYS[index])))
            .transpose()
    };
    let direction = |first: usize| -> Result<Option<LimitsSpec>, String> {
        let limits = LimitsSpec {
            bandwidth: rate(first, MIN_BURST_BYTES)?,
            operations: rate(first + 1, MIN_BURST_PACKETS)?,
        };
        let some = limits.bandwidth.is_some() || limits.operations.is_some();
        Ok(some.then_some(limits))
    };
    let (transmit, receive) = (direction(0)?, direction(2)?);
    let some = transmit.is_some() || receive.is_some();
    Ok(some.then_some(NicLimitsSpec { transmit, receive }))
}

/// Reads `RATE[:BURST]`; without a burst it is a tenth of a second's, and `least_burst` at
/// least.
pub fn rate(text: &str, least_burst: u64) -> Result<RateSpec, String> {
    let (per_second, burst) = match text.split_once(':') {
        Some((per_second, burst)) => (per_second, Some(burst)),
        None => (text, None),
    };
    let number = |text: &str| {
        let number = size::parse(text).ok();
        number
            .filter(|number| (1..=MAX).contains(number))
            .ok_or_else(|| format!("is {text:?}, it must be a number from 1 to {MAX}, such as 10m"))
    };
    let per_second = number(per_second)?;
    let burst = match burst {
        Some(burst) => number(burst)?,
        None => (per_second / BURSTS_PER_SECOND).max(least_burst),
    };
    Ok(RateSpec { per_second, burst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_limits_of_its_own() {
        assert_eq!(parse([None; 4]), Ok(None));
        let limits = parse([Some("10m"), None, None, Some("2k:5")]);
        let limits = limits.unwrap().unwrap();
        let transmit = limits.transmit.unwrap();
        assert_eq!(
            transmit.bandwidth,
            Some(RateSpec {
                per_second: 10 << 20,
                burst: 1 << 20,
            })
        );
        assert_eq!(transmit.operations, None);
        let receive = limits.receive.unwrap();
        assert_eq!(receive.bandwidth, None);
        assert_eq!(
            receive.operations,
            Some(RateSpec {
                per_second: 2048,
                burst: 5,
            })
        );
    }

    #[test]
    fn a_burst_holds_at_least_the_longest_packet() {
        assert_eq!(rate("1", MIN_BURST_BYTES).unwrap().burst, 64 << 10);
    }

    #[test]
    fn a_list_changes_the_directions_it_names() {
        let limits = parse_list("receive-pps=100,receive-bps=1m").unwrap();
        assert_eq!(limits.transmit, None);
        assert!(limits.receive.unwrap().bandwidth.is_some());
        assert!(parse_list("none").unwrap().transmit.is_some());
        for bad in ["", "receive-pps", "bps=1", "receive-pps=1,receive-pps=1"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for bad in ["", "0", "x", "1:", ":1", "1:0", "1:2:3", "2t:1", "-1"] {
            let error = parse([None, None, Some(bad), None]).unwrap_err();
            assert!(error.starts_with("receive-bps is"), "{bad}: {error}");
        }
    }
}
