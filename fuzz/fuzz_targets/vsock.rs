//! virtio-vsock under a driver that does anything, and an agent that does anything.
#![no_main]

use arbitrary::Unstructured;
use fuzz::acts::Game;
use fuzz::memory;
use fuzz::vsock::{Agent, GUEST, header};
use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::mock::MockDriver;
use vmm::devices::virtio::vsock::Vsock;

fuzz_target!(init: fuzz::signals::ignore_sigpipe(), |data: &[u8]| {
    let (mut agent, channel) = Agent::new();
    let device = Vsock::new(GUEST, channel).expect("an epoll");
    let mut driver = MockDriver::in_memory(memory::for_driver(), |_| device);
    let game = Game {
        // The event queue is as it is; its place among the others is tried too.
        queues: 3,
        features: 1 << 29,
        payload: &|u| {
            let mut header = header(u)?;
            header.length = u.int_in_range(0..=600)?;
            Ok(header.to_bytes().to_vec())
        },
        backend: &mut |u| agent.act(u),
    };
    game.play(&mut driver, &mut Unstructured::new(data));
});
