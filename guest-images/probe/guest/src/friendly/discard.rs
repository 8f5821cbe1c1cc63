//! Discard and write zeroes (virtio 1.3, section 5.2.6), by hand: the crate
//! `virtio-drivers` knows neither.

use crate::friendly::block;
use crate::hostile::driver::{Device, WRITE};
use crate::scenarios::Context;
use crate::{mmio, pattern, say};

/// `VIRTIO_BLK_F_DISCARD` and `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const FEATURES: u64 = 1 << 13 | 1 << 14;
/// `VIRTIO_BLK_T_DISCARD`.
pub const DISCARD: u32 = 11;
/// `VIRTIO_BLK_T_WRITE_ZEROES`.
pub const WRITE_ZEROES: u32 = 13;
/// `VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`.
pub const UNMAP: u32 = 1;

/// Where a request's parts are in the scratch page.
const HEADER: usize = 0;
const STATUS: usize = 16;
const SEGMENTS: usize = 32;
const SEGMENT_BYTES: usize = 16;

/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
pub type Segment = (u64, u32, u32);

/// Asks for `kind` with these segments; returns the status.
pub fn ask(device: &mut Device, kind: u32, segments: &[Segment]) -> u8 {
    device.put(HEADER, &[0; 16]);
    device.put(HEADER, &kind.to_le_bytes());
    device.put(STATUS, &[0xff]);
    for ((sector, sectors, flags), index) in segments.iter().zip(0..) {
        let at = SEGMENTS + index * SEGMENT_BYTES;
        device.put(at, &sector.to_le_bytes());
        device.put(at + 8, &sectors.to_le_bytes());
        device.put(at + 12, &flags.to_le_bytes());
    }
    let length = (segments.len() * SEGMENT_BYTES) as u32;
    let pieces = [
        (device.scratch(HEADER as u64), 16, 0),
        (device.scratch(SEGMENTS as u64), length, 0),
        (device.scratch(STATUS as u64), 1, WRITE),
    ];
    device.submit(0, &pieces);
    device.wait_for_answers();
    let [status] = device.get(STATUS);
    status
}

/// A field of `struct virtio_blk_config`.
pub fn config(device: &Device, offset: usize) -> u32 {
    mmio::read(device.window.address + 0x100 + offset)
}

/// Discards some sectors of a disk with the pattern and zeroes others; the rest
/// stays as it is.
pub fn play(context: &Context) {
    const SECTOR_BYTES: usize = 512;
    const DISCARDED: core::ops::Range<usize> = 16..40;
    const ZEROED: [core::ops::Range<usize>; 2] = [64..80, 90..93];
    let mut device = Device::new(block::window());
    device.start_with(1, FEATURES);
    assert!(config(&device, 36) >= 24, "max_discard_sectors");
    assert!(config(&device, 40) >= 2, "max_discard_seg");
    assert!(config(&device, 48) >= 24, "max_write_zeroes_sectors");
    assert!(config(&device, 52) >= 1, "max_write_zeroes_seg");
    assert_eq!(config(&device, 56), 1, "write_zeroes_may_unmap");
    let discarded = [(16, 8, 0), (24, 16, 0)];
    assert_eq!(ask(&mut device, DISCARD, &discarded), 0);
    assert_eq!(ask(&mut device, WRITE_ZEROES, &[(64, 16, UNMAP)]), 0);
    assert_eq!(ask(&mut device, WRITE_ZEROES, &[(90, 3, 0)]), 0);

    let seed = context.arguments.number("seed");
    let mut disk = block::start(device.window);
    for sector in 0..disk.capacity() as usize {
        let mut bytes = [0; SECTOR_BYTES];
        disk.read_blocks(sector, &mut bytes).expect("a read");
        if ZEROED.iter().any(|range| range.contains(&sector)) {
            assert_eq!(bytes, [0; SECTOR_BYTES], "sector {sector}");
        } else if !DISCARDED.contains(&sector) {
            let start = (sector * SECTOR_BYTES) as u64;
            assert_eq!(pattern::difference(seed, start, &bytes), None);
        }
    }
    say!("discarded");
}
