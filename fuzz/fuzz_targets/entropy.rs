//! virtio-rng under a driver that does anything.
#![no_main]

use arbitrary::Unstructured;
use fuzz::acts::Game;
use fuzz::{files, memory};
use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::entropy::Entropy;
use vmm::devices::virtio::mock::MockDriver;

fuzz_target!(|data: &[u8]| {
    // Random bytes would make no two executions the same.
    let device = Entropy::new(files::with(&[0x5a; 1000]));
    let mut driver = MockDriver::in_memory(memory::for_driver(), |_| device);
    let game = Game {
        queues: 1,
        features: 1 << 29,
        payload: &|u| Ok(u.bytes(u.len().min(8))?.to_vec()),
        backend: &mut |_| Ok(()),
    };
    game.play(&mut driver, &mut Unstructured::new(data));
});
