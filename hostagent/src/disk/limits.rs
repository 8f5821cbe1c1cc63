//! Limits of a microVM's disk, as `--disk` of `mote run` and `mote update` has them:
//! `bps=RATE[:BURST]` for the bytes a second, `iops` for the requests, both ways together.

use vmm::spec::LimitsSpec;

use crate::network::limits::{MIN_BURST_BYTES, MIN_BURST_PACKETS, rate};

/// Reads a list of them with commas between, or `none`, which has both lifted.
pub fn parse_list(text: &str) -> Result<LimitsSpec, String> {
    let mut limits = LimitsSpec {
        bandwidth: None,
        operations: None,
    };
    if text == "none" {
        return Ok(limits);
    }
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let (slot, least) = match key {
            "bps" => (&mut limits.bandwidth, MIN_BURST_BYTES),
            "iops" => (&mut limits.operations, MIN_BURST_PACKETS),
            _ => return Err(format!("{part:?} is not none, bps=RATE or iops=RATE")),
        };
        let rate = rate(value, least).map_err(|problem| format!("{key} {problem}"))?;
        if slot.replace(rate).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_sets_what_it_names_and_lifts_the_rest() {
        let limits = parse_list("iops=100:5").unwrap();
        assert_eq!(limits.bandwidth, None);
        assert_eq!(limits.operations.unwrap().burst, 5);
        assert_eq!(parse_list("none").unwrap().operations, None);
        for bad in ["", "bps", "bps=0", "rate=1", "bps=1,bps=2"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
    }
}
