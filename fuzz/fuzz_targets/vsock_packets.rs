//! The connections behind virtio-vsock, packet by packet.
#![no_main]

use arbitrary::{Result, Unstructured};
use fuzz::vsock::{Agent, GUEST, header};
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;
use vmm::devices::virtio::vsock::muxer::Muxer;
use vmm::devices::virtio::vsock::packet::Operation;

const MAX_STEPS: usize = 300;

fn step(u: &mut Unstructured, muxer: &mut Muxer, agent: &mut Agent) -> Result<()> {
    match u.int_in_range(0..=9)? {
        // As the device does: a driver that takes no answers is not listened to.
        0..=4 if !muxer.answers_full() => {
            let mut header = header(u)?;
            let mut data = vec![0x33; u.int_in_range(1..=3000)?];
            let sent = header.operation == Some(Operation::ReadWrite) && u.ratio(7, 8)?;
            header.length = if sent { data.len() as u32 } else { 0 };
            let slice = VolatileSlice::from(data.as_mut_slice());
            muxer.take(header, sent.then_some(&slice));
        }
        0..=6 => {
            let mut room = vec![0; u.int_in_range(1..=3000)?];
            let slice = VolatileSlice::from(room.as_mut_slice());
            if let Some(header) = muxer.next_packet(&slice) {
                assert!(header.length as usize <= room.len());
                assert_eq!((header.source_cid, header.destination_cid), (2, GUEST));
                assert!(header.operation.is_some());
            }
        }
        7 => muxer.poll(u.ratio(15, 16)?),
        8 if u.ratio(1, 16)? => muxer.reset(),
        _ => agent.act(u)?,
    }
    Ok(())
}

fuzz_target!(init: fuzz::signals::ignore_sigpipe(), |data: &[u8]| {
    let mut u = Unstructured::new(data);
    let (mut agent, channel) = Agent::new();
    let mut muxer = Muxer::new(GUEST, channel).expect("an epoll");
    for _ in 0..MAX_STEPS {
        if u.is_empty() || step(&mut u, &mut muxer, &mut agent).is_err() {
            break;
        }
    }
    // What there is to say comes to an end.
    let mut room = [0; 4096];
    let slice = VolatileSlice::from(&mut room[..]);
    let said = std::iter::from_fn(|| muxer.next_packet(&slice))
        .take(1 << 20)
        .count();
    assert!(said < 1 << 20);
    assert!(!muxer.has_packets());
});
