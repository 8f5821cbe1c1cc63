//! virtio-fs with a vhost-user backend that answers as it should for a while, then
//! anything, and then is gone. The first byte of the input says how many answers are
//! good; the rest is what comes after them.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fuzz::memory;
use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::fs::backend::{Backend, Patience};
use vmm::devices::virtio::fs::message::{REPLY_BYTES, Request, reply_to};
use vmm::devices::virtio::fs::{Filesystem, TAG_BYTES};
use vmm::devices::virtio::mock::{MockDriver, VERSION_1};

/// In the order of the protocol: what is asked before the guest starts, when its driver
/// is ready, and when it takes the queues back. Each with a good answer.
const HANDSHAKE: [(u32, u64); 4] = [(1, 0x1_7000_0000), (15, 9), (17, 2), (5, 0)];
const START: [(u32, u64); 13] = [
    (2, 0),
    (8, 0),
    (10, 0),
    (9, 0),
    (13, 0),
    (12, 0),
    (18, 0),
    (8, 0),
    (10, 0),
    (9, 0),
    (13, 0),
    (12, 0),
    (18, 0),
];
const STOP: [(u32, u64); 2] = [(11, 0), (11, 1)];

/// The end comes by end of file.
const PATIENCE: Patience = Patience {
    handshake: Duration::from_secs(60),
    start: Duration::from_secs(60),
    stop: Duration::from_secs(60),
};

/// Answers those of `answers` that are good; at the first that is not, sends `rest` and
/// ends.
fn answer(mut socket: &UnixStream, answers: &[(u32, u64)], good: &mut usize, rest: &[u8]) {
    for (request, number) in answers {
        let mut bytes = Vec::new();
        for word in [*request, 5, 8] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(number.to_ne_bytes());
        if *good == 0 {
            // What the backend has closed already is told nothing.
            let _ = socket.write_all(rest);
            let _ = socket.shutdown(Shutdown::Write);
            return;
        }
        *good -= 1;
        let _ = socket.write_all(&bytes);
    }
}

fuzz_target!(init: fuzz::signals::ignore_sigpipe(), |data: &[u8]| {
    let [good, rest @ ..] = data else { return };
    // More than the socket holds would wait.
    let rest = &rest[..rest.len().min(4096)];
    if let Some(bytes) = rest.first_chunk::<REPLY_BYTES>() {
        let body = reply_to(Request::GetFeatures, bytes);
        assert!(body.is_none() || bytes[0] == 1);
    }
    let mut good = usize::from(*good) % (HANDSHAKE.len() + START.len() + STOP.len() + 1);
    let (peer, socket) = UnixStream::pair().expect("sockets");
    let memory = memory::shared_for_driver();
    answer(&peer, &HANDSHAKE, &mut good, rest);
    let Ok(backend) = Backend::new(socket.into(), &memory, PATIENCE) else {
        return;
    };
    let device = Filesystem::new("fs0".to_owned(), [b'a'; TAG_BYTES], backend).expect("a timer");
    let mut driver = MockDriver::in_memory(memory, |_| device);
    driver.start(VERSION_1);
    // The backend is told of the queues.
    driver.transport.process_backend();
    answer(&peer, &START, &mut good, rest);
    driver.transport.process_backend();
    if !driver.needs_reset() {
        // As many as are asked for when the queues are taken back: they are read there.
        answer(&peer, &STOP, &mut good, rest);
        let _ = peer.shutdown(Shutdown::Write);
    }
    driver.reset();
    assert!(!driver.needs_reset());
    driver.start(VERSION_1);
    driver.transport.process_backend();
    driver.reset();
    assert!(driver.faults().len() <= 2);
});
