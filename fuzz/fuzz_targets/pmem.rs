//! virtio-pmem under a driver that does anything, over a file that is flushed and over
//! one that nobody writes.
#![no_main]

use std::sync::Arc;

use arbitrary::Unstructured;
use fuzz::acts::Game;
use fuzz::{files, memory};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use vmm::block;
use vmm::block::extents::{Extent, ExtentDisk};
use vmm::devices::virtio::mock::MockDriver;
use vmm::devices::virtio::pmem::Pmem;

const START: GuestAddress = GuestAddress(1 << 32);
const BYTES: u64 = 2 << 20;

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let backend = u.arbitrary().unwrap_or(true).then(|| {
        let extent = Extent {
            file: Arc::new(files::with(&[0; 4096])),
            offset_bytes: 0,
            length_bytes: 4096,
            blob: None,
        };
        block::open(ExtentDisk::new(vec![extent], false).expect("a small disk"))
    });
    let device = Pmem::new("pmem0".to_owned(), START, BYTES, backend);
    let mut driver = MockDriver::in_memory(memory::for_driver(), |_| device);
    let game = Game {
        queues: 1,
        features: 1 << 29,
        // Mostly what it flushes by.
        payload: &|u| Ok(u32::to_le_bytes(u.int_in_range(0..=3)?).to_vec()),
        backend: &mut |_| Ok(()),
    };
    game.play(&mut driver, &mut u);
});
