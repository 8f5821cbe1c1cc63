//! virtio-balloon under a driver that does anything, and a host that wishes anything.
#![no_main]

use arbitrary::Unstructured;
use fuzz::acts::Game;
use fuzz::memory;
use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::balloon::{Balloon, BalloonFeatures};
use vmm::devices::virtio::mock::{BUFFERS, MEMORY_BYTES, MockDriver};

/// Page numbers, or statistics: a tag of two bytes, a value of eight.
fn payload(u: &mut Unstructured) -> arbitrary::Result<Vec<u8>> {
    let count = u.int_in_range(1..=12)?;
    let mut bytes = Vec::new();
    let statistics = u.arbitrary()?;
    for _ in 0..count {
        if statistics {
            bytes.extend(u.int_in_range(0..=12_u16)?.to_le_bytes());
            bytes.extend(u.arbitrary::<u64>()?.to_le_bytes());
        } else {
            let number = match u.int_in_range(0..=7)? {
                0 => u.arbitrary()?,
                // Not the rings: what is in them would be gone.
                _ => (BUFFERS / 4096) as u32 + u.int_in_range(0..=200)?,
            };
            bytes.extend(number.to_le_bytes());
        }
    }
    Ok(bytes)
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let offers = u.arbitrary::<u8>().unwrap_or(7);
    let features = BalloonFeatures {
        deflate_on_oom: offers & 1 != 0,
        statistics: offers & 2 != 0,
        free_page_reporting: offers & 4 != 0,
    };
    let (device, handle) = Balloon::new(features, MEMORY_BYTES).expect("event descriptors");
    let queues = 2 + usize::from(features.statistics) + usize::from(features.free_page_reporting);
    let mut driver = MockDriver::in_memory(memory::for_driver(), |_| device);
    let offered = u64::from(offers & 1) << 2 | u64::from(offers & 2) | u64::from(offers & 4) << 3;
    let game = Game {
        queues,
        features: 1 << 29 | offered,
        payload: &payload,
        backend: &mut |u| {
            match u.int_in_range(0..=4)? {
                0 => drop(handle.set_target(u.arbitrary()?)),
                1 => drop(handle.set_target(u.int_in_range(0..=256)? * 4096)),
                2 => drop(handle.ask_for_statistics()),
                3 => drop(handle.take_statistics()),
                _ => assert!(handle.target_bytes() <= MEMORY_BYTES),
            }
            Ok(())
        },
    };
    game.play(&mut driver, &mut u);
});
