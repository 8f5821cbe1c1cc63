//! The control protocol. Each line of the input is a packet; one that begins with an
//! exclamation mark is something that happens meanwhile.
#![no_main]

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_manager::{EventManager, SubscriberOps};
use fuzz::{files, memory};
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    send, socketpair,
};
use vmm::block::extents::{Extent, ExtentDisk};
use vmm::block::plain::PlainDisk;
use vmm::control::server::{ControlServer, Handles};
use vmm::control::{MAX_REPLY_BYTES, Outcome, Reply};
use vmm::devices::power::PowerButton;
use vmm::devices::virtio::balloon::{Balloon, BalloonFeatures};
use vmm::devices::virtio::block::Block;
use vmm::devices::virtio::console::Console;
use vmm::devices::virtio::console::handle::Size;
use vmm::devices::virtio::limiter::Limits;
use vmm::devices::virtio::mock::{MEMORY_BYTES, MockDriver};
use vmm::event::EventSink;
use vmm::exit::ExitLine;
use vmm::kvm::pause::PauseGate;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MAX_LINES: usize = 24;
const SIZE: Size = Size {
    columns: 80,
    rows: 25,
};

fn block() -> MockDriver {
    let extent = Extent {
        file: Arc::new(files::with(&[0; 512])),
        offset_bytes: 0,
        length_bytes: 512,
        blob: None,
    };
    let disk = ExtentDisk::new(vec![extent], true).expect("a small disk");
    let backend = Box::new(PlainDisk::new(disk));
    let serial = [0; 20];
    let limits = Limits::default();
    MockDriver::in_memory(memory::for_driver(), |events| {
        Block::new("blk0".to_owned(), serial, backend, limits, events).expect("a timer")
    })
}

/// Reads all replies; each is one.
fn replies(agent: &OwnedFd) -> Vec<Reply> {
    let mut all = Vec::new();
    loop {
        let mut bytes = [0; MAX_REPLY_BYTES];
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let mut none = RecvAncillaryBuffer::default();
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let Ok(received) = recvmsg(agent, &mut pieces, &mut none, flags) else {
            return all;
        };
        let bytes = bytes
            .get(..received.bytes)
            .expect("no longer than it may be");
        all.push(serde_json::from_slice(bytes).expect("a reply"));
    }
}

fuzz_target!(init: fuzz::signals::ignore_sigpipe(), |data: &[u8]| {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (agent, socket) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
    let features = BalloonFeatures {
        statistics: true,
        ..BalloonFeatures::default()
    };
    let (balloon, handle) = Balloon::new(features, MEMORY_BYTES).expect("event descriptors");
    let balloon = MockDriver::in_memory(memory::for_driver(), |_| balloon);
    let block = block();
    let (_, console) = Console::new("console0".to_owned(), None, files::empty(), SIZE)
        .expect("event descriptors");
    // Without vCPUs a pause is complete as soon as the devices rest.
    let gate = PauseGate::new(0).expect("a handler");
    let exit = ExitLine::new().expect("an event descriptor");
    let handles = Handles {
        exit: Arc::clone(&exit),
        gate: Arc::clone(&gate),
        events: Arc::new(EventSink::new(None)),
        power_button: PowerButton::new(EventFd::new(EFD_NONBLOCK).expect("an event descriptor")),
        devices: vec![block.transport.clone(), balloon.transport.clone()],
        balloon: Some(handle),
        consoles: vec![console],
    };
    let server = ControlServer::new(socket, handles).expect("a timer");
    let mut manager = EventManager::<ControlServer>::new().expect("an epoll");
    manager.add_subscriber(server);
    let (mut sent, mut answered) = (0, 0);
    for line in data.split(|byte| *byte == b'\n').take(MAX_LINES) {
        match line {
            [b'!', b'c', ..] => gate.confirm(),
            [b'!', b'b', ..] => balloon.transport.process_backend(),
            [b'!', b's', ..] => {
                let _ = rustix::net::shutdown(&agent, rustix::net::Shutdown::Write);
            }
            packet => {
                sent += usize::from(send(&agent, packet, SendFlags::NOSIGNAL).is_ok());
            }
        }
        // One event at a time: a message, the gate, the statistics.
        for _ in 0..4 {
            if manager.run_with_timeout(0).expect("an epoll") == 0 {
                break;
            }
        }
        if !line.starts_with(b"!n") {
            let replies = replies(&agent);
            answered += replies.len();
            let refused =
                |reply: &Reply| matches!(&reply.outcome, Outcome::Error(why) if why.is_empty());
            assert!(!replies.iter().any(refused), "a refusal without a reason");
        }
    }
    assert!(answered <= sent, "{answered} replies to {sent} requests");
});
