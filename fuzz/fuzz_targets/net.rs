//! virtio-net under a driver that does anything. What pretends to be a tap is a socket.
#![no_main]

use arbitrary::Unstructured;
use fuzz::acts::Game;
use fuzz::memory;
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use vmm::devices::virtio::limiter::{Limits, Rate};
use vmm::devices::virtio::mock::MockDriver;
use vmm::devices::virtio::net::tap::Tap;
use vmm::devices::virtio::net::{Net, NetLimits, NetOptions};

/// A frame with its header, or a command of the control queue: class, command, pairs.
fn payload(u: &mut Unstructured) -> arbitrary::Result<Vec<u8>> {
    Ok(match u.arbitrary()? {
        true => {
            let mut bytes = vec![u.int_in_range(0..=5)?, u.int_in_range(0..=1)?];
            bytes.extend(u.int_in_range(0..=4_u16)?.to_le_bytes());
            bytes
        }
        false => u.bytes(u.len().min(24))?.to_vec(),
    })
}

fuzz_target!(init: fuzz::signals::ignore_sigpipe(), |data: &[u8]| {
    let mut u = Unstructured::new(data);
    let pairs = u.int_in_range(1..=3).unwrap_or(1);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (taps, mut peers): (Vec<_>, Vec<_>) = (0..pairs)
        .map(|_| {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                    .expect("sockets");
            (Tap::pretend(ours), Some(theirs))
        })
        .unzip();
    let options = NetOptions {
        mac: [2, 0, 0, 0, 0, 7],
        mtu: Some(1400),
        taps,
        segments_udp: true,
        vhost: Vec::new(),
        limits: limits(&mut u),
    };
    let guest_memory = memory::for_driver();
    let mut driver = MockDriver::in_memory(guest_memory.clone(), |events| {
        Net::new("net0".to_owned(), options, &guest_memory, events).expect("an epoll")
    });
    let game = Game {
        queues: if pairs == 1 { 2 } else { 2 * pairs + 1 },
        // Those of the ring, and whatever the device offers: it refuses others, and
        // the driver goes on with what it has.
        features: 1 << 29 | offered(pairs),
        payload: &payload,
        backend: &mut |u| {
            let index = u.int_in_range(0..=pairs - 1)?;
            let action = u.int_in_range(0..=15)?;
            let Some(peer) = &peers[index] else {
                return Ok(());
            };
            match action {
                0..=8 => {
                    let length = match u.int_in_range(0..=3)? {
                        0 => u.int_in_range(0..=70_000)?,
                        _ => u.int_in_range(0..=1600)?,
                    };
                    // An empty one would be the end.
                    let frame = vec![0x77; length.max(1)];
                    let _ = send(peer, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                }
                15 => peers[index] = None,
                _ => drop(recv(peer, &mut [0; 2048][..], RecvFlags::DONTWAIT)),
            }
            Ok(())
        },
    };
    game.play(&mut driver, &mut u);
});

/// Often none; else some frames or bytes pass, and then hardly any.
fn limits(u: &mut Unstructured) -> NetLimits {
    let mut direction = || {
        let mut rate = |most| {
            let burst = u.int_in_range(0..=2 * most).unwrap_or(0);
            (1..=most).contains(&burst).then_some(Rate {
                per_second: 1,
                burst,
            })
        };
        Limits {
            bandwidth: rate(8000),
            operations: rate(20),
        }
    };
    NetLimits {
        transmit: direction(),
        receive: direction(),
    }
}

/// What a device with so many pairs offers: checksums, MTU, MAC, segmentation and
/// merged buffers, and with several pairs the control queue.
fn offered(pairs: usize) -> u64 {
    let bits = [0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 54, 55, 56];
    let several: &[u32] = if pairs > 1 { &[17, 22] } else { &[] };
    bits.iter()
        .chain(several)
        .fold(0, |all, bit| all | 1 << bit)
}
