//! A disk whose backend hangs.

use super::driver::{Device, WRITE, register};
use crate::friendly::{self, block};
use crate::scenarios::Context;
use crate::{pattern, say};

const READ: u32 = 0;
const WRITE_OUT: u32 = 1;

/// Asks for a sector, or gives one, and waits for no answer.
fn ask(device: &mut Device, kind: u32, seed: u64) {
    // What is there already.
    let mut sector = [0; 512];
    pattern::fill(seed, 0, &mut sector);
    device.put(1024, &sector);
    device.put(0, &[0; 16]);
    device.put(0, &kind.to_le_bytes());
    let (header, status) = (device.scratch(0), device.scratch(16));
    let data = device.scratch(1024);
    let direction = if kind == READ { WRITE } else { 0 };
    let pieces = [(header, 16, 0), (data, 512, direction), (status, 1, WRITE)];
    device.submit(0, &pieces);
}

/// Reads and writes a disk that does not answer, resets it, and goes on with something
/// else; once it answers, the disk can be used again.
pub fn disk(context: &Context) {
    let seed = context.arguments.number("seed");
    for kind in [READ, WRITE_OUT] {
        let mut device = Device::started(block::window(), 1);
        ask(&mut device, kind, seed);
        friendly::entropy::check();
        say!("asked");
        // Not `Device::reset`, which waits for the end.
        device.write(register::STATUS, 0);
        assert_ne!(device.status(), 0, "the reset is not over");
        device.negotiate(1 << 32);
        assert_eq!(device.status() & 8, 0, "it agrees to nothing");
        for _ in 0..100 {
            friendly::entropy::check();
        }
        say!("resetting");
        device.reset();
        say!("reset");
    }
    let mut device = Device::started(block::window(), 1);
    ask(&mut device, READ, seed);
    device.wait_for_answers();
    block::compare(&mut block::start(block::window()), seed);
    say!("recovered");
}
