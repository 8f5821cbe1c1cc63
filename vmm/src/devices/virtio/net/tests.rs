//! Frames both ways: through a socket that pretends to be a tap, and through taps.

mod hostile;
mod limits;
mod real_tap;

use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use super::super::mmio::register;
use super::super::mock::{BUFFERS, MockDriver, VERSION_1, WRITE};
use super::*;
use crate::bus::BusDevice;
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};

const MAC: MacAddress = [2, 0, 0, 0, 0, 7];
const RX: usize = 0;
const TX: usize = 1;

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const MULTIQUEUE: u64 = 1 << VIRTIO_NET_F_MQ;
const CONTROL: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;

/// The other end of what pretends to be a tap.
struct Peer(OwnedFd);

impl Peer {
    /// Sends a frame, with a header of zeroes before it.
    fn send(&self, frame: &[u8]) {
        let bytes = [&[0; HEADER_BYTES][..], frame].concat();
        rustix::net::send(&self.0, &bytes, SendFlags::empty()).unwrap();
    }

    /// The next frame and its header, if there is one.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let (length, _) = rustix::net::recv(&self.0, &mut bytes[..], flags).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }
}

fn pretend_tap() -> (Tap, Peer) {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap();
    (Tap::pretend(ours), Peer(theirs))
}

fn options(taps: Vec<Tap>) -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: Some(1400),
        taps,
        segments_udp: true,
        vhost: Vec::new(),
        limits: NetLimits::default(),
    }
}

fn device(taps: Vec<Tap>, events: Arc<EventSink>) -> Net {
    let memory = crate::memory::create(4096).unwrap();
    Net::new("net0".to_owned(), options(taps), &memory, events).unwrap()
}

/// A driver that has started with `features`, and the other ends of `pairs` taps.
fn started(pairs: usize, features: u64) -> (MockDriver, Vec<Peer>) {
    let (taps, peers) = (0..pairs).map(|_| pretend_tap()).unzip();
    let mut driver = MockDriver::new(device(taps, Arc::new(EventSink::new(None))));
    driver.start(VERSION_1 | features);
    (driver, peers)
}

fn frame(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 37 / 11 % 251) as u8).collect()
}

/// Puts a frame with a header of zeroes into memory.
fn put_frame(driver: &MockDriver, address: u64, frame: &[u8]) {
    driver.put(address, &[0; HEADER_BYTES]);
    driver.put(address + HEADER_BYTES as u64, frame);
}

/// The frame in the buffers from [`BUFFERS`] on, `step` bytes apart.
fn frame_in(driver: &MockDriver, used: &[(u32, u32)], step: u64) -> Vec<u8> {
    used.iter()
        .flat_map(|(head, written)| {
            driver.bytes(BUFFERS + u64::from(*head) * step, *written as usize)
        })
        .collect()
}

#[test]
fn the_configuration_says_what_the_nic_is_like() {
    let (driver, _peers) = started(3, 0);
    let mut config = [0; CONFIG_BYTES];
    driver.transport.read(register::CONFIG, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..8], [1, 0]);
    assert_eq!(config[8..10], [3, 0]);
    assert_eq!(config[10..12], 1400_u16.to_le_bytes());
}

#[test]
fn one_pair_has_no_control_queue_and_several_have() {
    let sizes = |pairs| {
        let (taps, _peers): (Vec<_>, Vec<_>) = (0..pairs).map(|_| pretend_tap()).unzip();
        let net = device(taps, Arc::new(EventSink::new(None)));
        let offers = net.features() & (MULTIQUEUE | CONTROL);
        (net.queue_sizes().len(), offers)
    };
    assert_eq!(sizes(1), (2, 0));
    assert_eq!(sizes(2), (5, MULTIQUEUE | CONTROL));
    assert_eq!(sizes(8), (17, MULTIQUEUE | CONTROL));
}

#[test]
fn a_frame_is_sent_from_pieces_of_any_length() {
    let (mut driver, peers) = started(1, 0);
    let content = frame(300);
    put_frame(&driver, BUFFERS, &content);
    let pieces = [(BUFFERS, 5, 0), (BUFFERS + 5, 0, 0), (BUFFERS + 5, 307, 0)];
    driver.submit(TX, &pieces);
    assert_eq!(driver.take_used(TX), [(0, 0)]);
    assert_eq!(peers[0].receive().unwrap()[HEADER_BYTES..], content);
    assert!(driver.take_interrupt() & 1 != 0);
}

#[test]
fn the_header_goes_to_the_tap_as_it_is() {
    let (mut driver, peers) = started(1, 0);
    let header = [1, 4, 54, 0, 0x78, 5, 14, 0, 20, 0, 0, 0];
    driver.put(BUFFERS, &header);
    driver.submit(TX, &[(BUFFERS, 100, 0)]);
    assert_eq!(peers[0].receive().unwrap()[..HEADER_BYTES], header);
}

#[test]
fn a_frame_waits_for_a_buffer_and_a_buffer_for_a_frame() {
    let (mut driver, peers) = started(1, 0);
    peers[0].send(&frame(60));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), []);
    driver.submit(RX, &[(BUFFERS, 2000, WRITE)]);
    assert_eq!(driver.take_used(RX), [(0, 72)]);
    driver.submit(RX, &[(BUFFERS, 2000, WRITE)]);
    assert_eq!(driver.take_used(RX), []);
    peers[0].send(&frame(61));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), [(0, 73)]);
    let bytes = driver.bytes(BUFFERS, 73);
    // One buffer, whatever was agreed upon.
    assert_eq!(bytes[NUM_BUFFERS..HEADER_BYTES], [1, 0]);
    assert_eq!(bytes[HEADER_BYTES..], frame(61));
}

const NUM_BUFFERS: usize = 10;

#[test]
fn a_frame_larger_than_the_buffer_is_dropped_where_buffers_are_not_merged() {
    let (mut driver, peers) = started(1, 0);
    driver.submit_at(RX, 0, &[(BUFFERS, 100, WRITE)]);
    peers[0].send(&frame(89));
    peers[0].send(&frame(88));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), [(0, 100)]);
    assert_eq!(driver.bytes(BUFFERS + 12, 88), frame(88));
    assert!(!driver.needs_reset());
}

#[test]
fn a_frame_that_outgrows_its_buffers_waits_for_more() {
    let (mut driver, peers) = started(1, MERGEABLE);
    for head in 0..2 {
        driver.submit_at(RX, head, &[(BUFFERS + u64::from(head) * 100, 100, WRITE)]);
    }
    peers[0].send(&frame(450));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), []);
    for head in 2..4 {
        driver.submit_at(RX, head, &[(BUFFERS + u64::from(head) * 100, 100, WRITE)]);
        driver.transport.process_queue(RX);
        assert_eq!(driver.take_used(RX), [], "{head}");
    }
    driver.submit_at(RX, 4, &[(BUFFERS + 400, 100, WRITE)]);
    driver.transport.process_queue(RX);
    let used = driver.take_used(RX);
    assert_eq!(used, [(0, 100), (1, 100), (2, 100), (3, 100), (4, 62)]);
    let bytes = frame_in(&driver, &used, 100);
    assert_eq!(bytes[NUM_BUFFERS..HEADER_BYTES], [5, 0]);
    assert_eq!(bytes[HEADER_BYTES..], frame(450));
}

#[test]
fn a_frame_that_no_queue_of_buffers_holds_is_dropped() {
    let (mut driver, peers) = started(1, MERGEABLE);
    for head in 0..16 {
        driver.submit_at(RX, head, &[(BUFFERS + u64::from(head) * 20, 20, WRITE)]);
    }
    peers[0].send(&frame(309));
    peers[0].send(&frame(300));
    driver.transport.process_backend();
    let used = driver.take_used(RX);
    assert_eq!(used.len(), 16);
    assert_eq!(frame_in(&driver, &used, 20)[HEADER_BYTES..], frame(300));
}

#[test]
fn taps_of_unused_pairs_deliver_through_used_ones() {
    let (mut driver, peers) = started(2, MULTIQUEUE | CONTROL);
    driver.submit_at(RX, 0, &[(BUFFERS, 500, WRITE)]);
    peers[1].send(&frame(30));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), [(0, 42)]);

    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    driver.submit_at(RX, 0, &[(BUFFERS, 500, WRITE)]);
    driver.submit_at(2, 0, &[(BUFFERS + 500, 500, WRITE)]);
    peers[1].send(&frame(31));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), []);
    assert_eq!(driver.take_used(2), [(0, 43)]);
    // And is sent by its own.
    put_frame(&driver, BUFFERS + 1000, &frame(20));
    driver.submit(3, &[(BUFFERS + 1000, 32, 0)]);
    assert!(peers[1].receive().is_some());
    assert!(peers[0].receive().is_none());
}

/// Gives a command and returns the answer.
fn command(driver: &mut MockDriver, queue: usize, bytes: &[u8]) -> u8 {
    const COMMAND: u64 = BUFFERS + 0x8000;
    driver.put(COMMAND, bytes);
    driver.put(COMMAND + 0x100, &[0xee]);
    let pieces = [
        (COMMAND, bytes.len() as u32, 0),
        (COMMAND + 0x100, 1, WRITE),
    ];
    driver.submit(queue, &pieces);
    assert_eq!(driver.take_used(queue), [(0, 1)]);
    driver.bytes(COMMAND + 0x100, 1)[0]
}

#[test]
fn numbers_of_pairs_are_checked_and_other_commands_refused() {
    let (mut driver, _peers) = started(2, MULTIQUEUE | CONTROL);
    for good in [[4, 0, 1, 0], [4, 0, 2, 0]] {
        assert_eq!(command(&mut driver, 4, &good), 0, "{good:?}");
    }
    for bad in [
        &[4, 0, 0, 0][..],
        &[4, 0, 3, 0],
        &[4, 0, 0, 1],
        &[4, 0, 255, 255],
        &[4, 1, 2, 0],
        &[0, 0, 1],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        &[4],
    ] {
        assert_eq!(command(&mut driver, 4, bad), 1, "{bad:?}");
    }
}

#[test]
fn without_multiqueue_the_control_queue_is_the_third() {
    let (mut driver, _peers) = started(2, CONTROL);
    assert_eq!(command(&mut driver, 2, &[4, 0, 1, 0]), 0);
    assert_eq!(command(&mut driver, 2, &[4, 0, 2, 0]), 1);
}

#[test]
fn after_a_reset_buffers_and_frames_of_before_are_forgotten() {
    let (mut driver, peers) = started(1, MERGEABLE);
    driver.submit_at(RX, 0, &[(BUFFERS, 100, WRITE)]);
    // Half received when the driver resets.
    peers[0].send(&frame(150));
    driver.transport.process_backend();
    driver.start(VERSION_1 | MERGEABLE);
    driver.put(BUFFERS, &[0xee; 100]);
    peers[0].send(&frame(50));
    driver.transport.process_backend();
    assert_eq!(driver.bytes(BUFFERS, 100), [0xee; 100]);
    driver.submit_at(RX, 3, &[(BUFFERS + 200, 100, WRITE)]);
    driver.transport.process_queue(RX);
    assert_eq!(driver.take_used(RX), [(3, 62)]);
    assert_eq!(driver.bytes(BUFFERS + 212, 50), frame(50));
}

#[test]
fn a_queue_that_is_taken_away_gets_nothing_more() {
    let (mut driver, peers) = started(1, 0);
    driver.submit(RX, &[(BUFFERS, 100, WRITE)]);
    driver.write(register::QUEUE_SEL, RX as u32);
    driver.write(register::QUEUE_READY, 0);
    driver.put(BUFFERS, &[0xee; 100]);
    peers[0].send(&frame(50));
    driver.transport.process_backend();
    assert_eq!(driver.bytes(BUFFERS, 100), [0xee; 100]);
    assert!(!driver.needs_reset());
}

#[test]
fn one_turn_takes_a_bounded_number_of_frames_and_the_next_goes_on() {
    let (mut driver, peers) = started(1, 0);
    // Returned buffers are offered again from another side, as a guest would while
    // the device is at work, so the bound is the device's own.
    for head in 0..16 {
        driver.submit_at(RX, head, &[(BUFFERS, 100, WRITE)]);
    }
    for _ in 0..40 {
        peers[0].send(&frame(10));
    }
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX).len(), 16);
    for head in 0..16 {
        driver.submit_at(RX, head, &[(BUFFERS, 100, WRITE)]);
    }
    // Woken without a new frame.
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX).len(), 16);
}

proptest! {
    #[test]
    fn frames_arrive_whole_and_in_order_whatever_the_buffers(
        lengths in proptest::collection::vec(1_usize..2000, 1..12),
        rooms in proptest::collection::vec(12_u32..400, 16),
        event_index in any::<bool>(),
    ) {
        let event_index = if event_index { super::super::mock::EVENT_INDEX } else { 0 };
        let (mut driver, peers) = started(1, MERGEABLE | event_index);
        for length in &lengths {
            peers[0].send(&frame(*length));
        }
        let offer = |driver: &mut MockDriver, head: u16| {
            let room = rooms[usize::from(head)];
            driver.submit_at(RX, head, &[(BUFFERS + u64::from(head) * 400, room, WRITE)]);
        };
        for head in 0..16 {
            offer(&mut driver, head);
        }
        let total: u32 = rooms.iter().sum();
        let mut received = Vec::new();
        let mut turns = 0;
        driver.transport.process_backend();
        loop {
            let mut used = driver.take_used(RX).into_iter();
            let mut any = false;
            while let Some(first) = used.next() {
                any = true;
                let head_bytes = driver.bytes(BUFFERS + u64::from(first.0) * 400, 12);
                let number = u16::from_le_bytes([head_bytes[10], head_bytes[11]]);
                // All of a frame's buffers are there, or none.
                let mut all = vec![first];
                for _ in 1..number {
                    all.push(used.next().expect("all buffers of a frame"));
                }
                received.push(frame_in(&driver, &all, 400)[HEADER_BYTES..].to_vec());
                for (head, _) in all {
                    offer(&mut driver, head as u16);
                }
            }
            turns += 1;
            prop_assert!(turns < 200);
            driver.transport.process_queue(RX);
            driver.transport.process_backend();
            if !any && turns > 3 {
                break;
            }
        }
        // What all buffers together do not hold is dropped, the rest arrives.
        let expected: Vec<_> = lengths
            .iter()
            .filter(|length| **length + HEADER_BYTES <= total as usize)
            .map(|length| frame(*length))
            .collect();
        prop_assert_eq!(received, expected);
        prop_assert!(!driver.needs_reset());
    }

    #[test]
    fn frames_leave_whole_and_in_order_however_they_are_cut(
        frames in proptest::collection::vec(
            proptest::collection::vec(0_u32..300, 1..8), 1..16),
    ) {
        let (mut driver, peers) = started(1, 0);
        for (lengths, slot) in frames.iter().zip(0..) {
            let start = BUFFERS + slot * 0x1000;
            let total: u32 = lengths.iter().sum();
            driver.put(start, &frame(total as usize));
            let mut at = start;
            let pieces: Vec<_> = lengths
                .iter()
                .map(|length| {
                    let piece = (at, *length, 0);
                    at += u64::from(*length);
                    piece
                })
                .collect();
            driver.submit_at(TX, 0, &pieces);
            driver.transport.process_queue(TX);
            prop_assert_eq!(driver.take_used(TX).len(), 1);
            let sent = peers[0].receive().unwrap_or_default();
            prop_assert_eq!(sent, frame(total as usize));
        }
    }
}
