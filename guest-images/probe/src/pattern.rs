//! Bytes that guest and host both know: what stands where on a test disk and in
//! a test stream. This file is compiled into both.

/// The byte at `position` of the pattern called `seed`. Its period is longer than
/// a sector, a page and a packet, so that a piece in the wrong place shows.
pub fn byte(seed: u64, position: u64) -> u8 {
    let mixed = (position / 8 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (position % 8 * 8)) as u8
}

/// Fills `bytes` with the pattern from `position` on.
pub fn fill(seed: u64, position: u64, bytes: &mut [u8]) {
    for (target, at) in bytes.iter_mut().zip(position..) {
        *target = byte(seed, at);
    }
}

/// Where `bytes` first differ from the pattern from `position` on.
pub fn difference(seed: u64, position: u64, bytes: &[u8]) -> Option<u64> {
    bytes
        .iter()
        .zip(position..)
        .find(|(found, at)| **found != byte(seed, *at))
        .map(|(_, at)| at)
}
