//! Discards of what is not there, of too much, and of nothing.

use super::driver::Device;
use crate::friendly::discard::{DISCARD, FEATURES, Segment, UNMAP, WRITE_ZEROES, ask, config};
use crate::friendly::{self, block};
use crate::say;
use crate::scenarios::Context;

const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Makes requests that must all be refused, and then uses the disk as ever: not
/// one of them has changed it.
pub fn play(context: &Context) {
    let mut device = Device::new(block::window());
    device.start_with(1, FEATURES);
    let capacity = u64::from(config(&device, 0));
    let max_discard = config(&device, 36);
    let max_segments = config(&device, 40) as usize;
    let max_zeroes = config(&device, 48);

    let refused: &[&[Segment]] = &[
        &[],
        &[(capacity, 1, 0)],
        &[(capacity - 1, 2, 0)],
        &[(u64::MAX, 1, 0)],
        &[(u64::MAX / 512, 2, 0)],
        &[(u64::MAX / 512 + 1, 1, 0)],
        &[(0, u32::MAX, 0)],
        &[(0, max_discard.max(max_zeroes).saturating_add(1), 0)],
        // Good ones before a bad one.
        &[(0, 8, 0), (8, 8, 0), (capacity, 8, 0)],
    ];
    for kind in [DISCARD, WRITE_ZEROES] {
        for segments in refused {
            let status = ask(&mut device, kind, segments);
            assert_eq!(status, IO_ERROR, "type {kind}: {segments:?}");
        }
    }
    let too_many = [(0, 1, 0); 200];
    assert!(max_segments < too_many.len());
    let many = &too_many[..max_segments + 1];
    assert_eq!(ask(&mut device, DISCARD, many), IO_ERROR);
    assert_eq!(ask(&mut device, WRITE_ZEROES, many), IO_ERROR);
    // Section 5.2.6.2: flags that are unknown, or not for a discard.
    assert_eq!(ask(&mut device, DISCARD, &[(0, 8, UNMAP)]), UNSUPPORTED);
    for flags in [2, 0x8000_0000, u32::MAX] {
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(ask(&mut device, kind, &[(0, 8, flags)]), UNSUPPORTED);
        }
    }
    assert!(!device.needs_reset());
    friendly::entropy::check();
    let seed = context.arguments.number("seed");
    block::compare(&mut block::start(device.window), seed);
    say!("refused");
}
