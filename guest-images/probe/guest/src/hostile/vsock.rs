//! Packets that no driver sends.

use virtio_drivers::transport::DeviceType;

use super::driver::{Device, QUEUE_SIZE, WRITE};
use super::{Attack, Outcome};
use crate::friendly::vsock::Socket;
use crate::scenarios::Context;
use crate::virtio::{self, Window};
use crate::{friendly, say};

const RX: usize = 0;
const TX: usize = 1;
const QUEUES: usize = 3;
const HEADER_BYTES: u32 = 44;
const HOST: u64 = 2;
/// As the host of these tests numbers its guest.
const GUEST: u64 = 3;
/// A port that the host of these tests accepts.
const OPEN_PORT: u32 = 1024;
const STREAM: u16 = 1;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const READ_WRITE: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// Where things are in the scratch page.
const SENT: u64 = 0;
const RECEIVED: u64 = 256;
const ROOM: u32 = 1024;

/// A packet's header.
#[derive(Clone, Copy)]
struct Packet {
    from: u64,
    to: u64,
    from_port: u32,
    to_port: u32,
    length: u32,
    kind: u16,
    operation: u16,
    flags: u32,
}

/// A request to the open port, of which others differ in one thing.
const GOOD: Packet = Packet {
    from: GUEST,
    to: HOST,
    from_port: 1,
    to_port: OPEN_PORT,
    length: 0,
    kind: STREAM,
    operation: REQUEST,
    flags: 0,
};

impl Packet {
    fn bytes(self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&self.from.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.to.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.from_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.to_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&0x1_0000_u32.to_le_bytes());
        bytes
    }
}

/// Sends a packet without payload and waits until the device has taken it.
fn send(device: &mut Device, packet: Packet) {
    offer(device, packet);
    while !device.rings[TX].all_returned() {
        assert!(!device.needs_reset(), "the device asks for reset");
    }
}

fn offer(device: &mut Device, packet: Packet) {
    device.put(SENT as usize, &packet.bytes());
    let address = device.scratch(SENT);
    device.submit(TX, &[(address, HEADER_BYTES, 0)]);
}

/// Gives the device a buffer for one packet.
fn give_buffer(device: &mut Device) {
    let address = device.scratch(RECEIVED);
    device.submit(RX, &[(address, ROOM, WRITE)]);
}

/// The packet in the buffer: its operation and the port it is for.
fn received(device: &Device) -> (u16, u32) {
    let bytes: [u8; HEADER_BYTES as usize] = device.get(RECEIVED as usize);
    let port = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
    (u16::from_le_bytes([bytes[30], bytes[31]]), port)
}

/// Gives the device a buffer and waits for the packet in it.
fn receive(device: &mut Device) -> (u16, u32) {
    give_buffer(device);
    while !device.rings[RX].all_returned() {
        assert!(!device.needs_reset(), "the device asks for reset");
    }
    received(device)
}

fn window() -> Window {
    virtio::find(DeviceType::Socket, 0)
}

/// A connection still comes about.
fn check() {
    let mut socket = Socket::start();
    let stream = socket.connect(OPEN_PORT).expect("the host accepts");
    socket.close(stream);
}

const ATTACKS: &[Attack] = &[
    fault("packet-too-short", |device| {
        let address = device.scratch(SENT);
        device.submit(TX, &[(address, HEADER_BYTES - 1, 0)]);
    }),
    fault("packet-writable", |device| {
        let address = device.scratch(SENT);
        device.submit(TX, &[(address, HEADER_BYTES, WRITE)]);
    }),
    fault("packet-outside-memory", |device| {
        device.submit(TX, &[(1 << 40, HEADER_BYTES, 0)]);
    }),
    fault("payload-missing", |device| {
        let packet = Packet {
            operation: READ_WRITE,
            length: 100,
            ..GOOD
        };
        offer(device, packet);
    }),
    fault("payload-shorter-than-said", |device| {
        payload(device, 100, (0, 99, 0));
    }),
    fault("payload-outside-memory", |device| {
        payload(device, 100, (1 << 40, 100, 0));
    }),
    fault("payload-of-four-gigabytes", |device| {
        payload(device, u32::MAX, (0, u32::MAX, 0));
    }),
    fault("buffer-not-writable", |device| {
        let address = device.scratch(RECEIVED);
        device.submit(RX, &[(address, ROOM, 0)]);
        offer(device, GOOD);
    }),
    fault("buffer-too-short", |device| {
        let address = device.scratch(RECEIVED);
        device.submit(RX, &[(address, HEADER_BYTES - 1, WRITE)]);
        offer(device, GOOD);
    }),
    fault("buffer-outside-memory", |device| {
        device.submit(RX, &[(1 << 40, ROOM, WRITE)]);
        offer(device, GOOD);
    }),
    fault("available-index-jumps", |device| {
        device.rings[TX].set_available(1000);
        device.notify(TX as u32);
    }),
];

const fn fault(name: &'static str, run: fn(&mut Device)) -> Attack {
    Attack {
        name,
        run,
        outcome: Outcome::Fault,
    }
}

/// Sends a packet that says it has `length` bytes of payload, which `piece` is.
fn payload(device: &mut Device, length: u32, piece: (u64, u32, u16)) {
    let packet = Packet {
        operation: READ_WRITE,
        length,
        ..GOOD
    };
    device.put(SENT as usize, &packet.bytes());
    let address = device.scratch(SENT);
    device.submit(TX, &[(address, HEADER_BYTES, 0), piece]);
}

/// Makes the attack that the command line names, and then connects as ever.
pub fn play(context: &Context) {
    let attack = super::find(ATTACKS, context.arguments.text("attack"));
    super::attack(attack, &mut Device::started(window(), QUEUES));
    check();
    say!("survived");
}

/// Sends what must be answered with a reset, and what must not be answered.
pub fn strangers(_: &Context) {
    let mut device = Device::started(window(), QUEUES);
    let device = &mut device;
    let answered = |operation| Packet { operation, ..GOOD };
    // Of connections that do not exist, and of kinds that do not.
    let strangers = [
        answered(RESPONSE),
        answered(SHUTDOWN),
        answered(READ_WRITE),
        answered(CREDIT_UPDATE),
        answered(0),
        answered(999),
        Packet { kind: 2, ..GOOD },
        Packet { kind: 0, ..GOOD },
        // The host refuses this port; all ones is "any".
        Packet {
            to_port: u32::MAX,
            ..GOOD
        },
    ];
    for (stranger, port) in strangers.into_iter().zip(100..) {
        send(
            device,
            Packet {
                from_port: port,
                ..stranger
            },
        );
        let operation = stranger.operation;
        assert_eq!(receive(device), (RESET, port), "operation {operation}");
    }

    // From others, to others, and a reset of nothing. The answer to the request
    // after them is the next packet there is.
    send(device, Packet { from: 4, ..GOOD });
    send(device, Packet { from: HOST, ..GOOD });
    send(device, Packet { to: 9, ..GOOD });
    send(
        device,
        Packet {
            to: u64::MAX,
            ..GOOD
        },
    );
    send(device, answered(RESET));
    send(device, GOOD);
    assert_eq!(receive(device), (RESPONSE, GOOD.from_port));
    // The same once more.
    send(device, GOOD);
    assert_eq!(receive(device), (RESET, GOOD.from_port));
    check();
    say!("answered");
}

/// Sends more than the host has room for, while nobody there reads.
pub fn past_credit(_: &Context) {
    const PAYLOAD: u32 = 32 << 10;
    let mut device = Device::started(window(), QUEUES);
    let device = &mut device;
    send(device, GOOD);
    assert_eq!(receive(device), (RESPONSE, GOOD.from_port));
    let data = virtio::pages(PAYLOAD as usize / 4096).as_ptr() as u64;
    let mut sent = 0_u64;
    let mut last = RESPONSE;
    give_buffer(device);
    // What the host takes on its way to the agent it says it has taken.
    while last != RESET {
        payload(device, PAYLOAD, (data, PAYLOAD, 0));
        while !device.rings[TX].all_returned() {}
        sent += u64::from(PAYLOAD);
        assert!(sent < 64 << 20, "the host takes without end");
        if device.rings[RX].all_returned() {
            (last, _) = received(device);
            give_buffer(device);
        }
    }
    assert!(!device.needs_reset());
    check();
    say!("reset");
}

/// Asks for more connections than there can be.
pub fn too_many(_: &Context) {
    const ASKED: u32 = 300;
    let mut device = Device::started(window(), QUEUES);
    let device = &mut device;
    let mut accepted = 0;
    for port in 0..ASKED {
        let from_port = port + 1;
        send(device, Packet { from_port, ..GOOD });
        match receive(device) {
            (RESPONSE, answered) if answered == from_port => accepted += 1,
            (RESET, answered) if answered == from_port => {}
            other => panic!("{other:?} to a request"),
        }
    }
    assert!(accepted < ASKED, "the host accepts without end");
    check();
    say!("{accepted} accepted");
}

/// Sends what must be answered and never takes an answer, until the device stops
/// listening. It listens again when the answers are taken.
pub fn deaf(_: &Context) {
    const PACKETS: u32 = 2000;
    let mut device = Device::started(window(), QUEUES);
    let device = &mut device;
    let stranger = Packet {
        operation: SHUTDOWN,
        ..GOOD
    };
    device.put(SENT as usize, &stranger.bytes());
    let address = device.scratch(SENT);
    let mut sent = 0;
    // Other devices go on; when the queue stays full, the device has stopped.
    let mut idle = 0;
    while sent < PACKETS && idle < 3 {
        let ring = &mut device.rings[TX];
        let mut room = QUEUE_SIZE - (sent as u16).wrapping_sub(ring.used_index());
        idle = if room == 0 { idle + 1 } else { 0 };
        while room > 0 {
            ring.describe_chain(0, &[(address, HEADER_BYTES, 0)]);
            ring.offer(0);
            (room, sent) = (room - 1, sent + 1);
        }
        device.notify(TX as u32);
        friendly::entropy::check();
    }
    assert!(sent < PACKETS, "the device takes packets without end");
    // Now it is heard.
    for _ in 0..sent {
        assert_eq!(receive(device), (RESET, GOOD.from_port));
    }
    assert!(device.rings[TX].all_returned());
    check();
    say!("heard");
}

/// Connections that are asked for and given up, without ever a look at an answer.
pub fn flood(_: &Context) {
    let mut device = Device::started(window(), QUEUES);
    let device = &mut device;
    device.put(SENT as usize, &GOOD.bytes());
    let end = Packet {
        operation: RESET,
        ..GOOD
    };
    device.put(RECEIVED as usize, &end.bytes());
    let packets = [SENT, RECEIVED].map(|at| device.scratch(at));
    super::flood::flood(|_| {
        let ring = &mut device.rings[TX];
        for (packet, head) in packets.into_iter().zip(0..) {
            ring.describe_chain(head, &[(packet, HEADER_BYTES, 0)]);
            ring.offer(head);
        }
        device.notify(TX as u32);
        while !device.rings[TX].all_returned() {}
    });
}
