//! What the kernel's tap makes of it all.

#[path = "../../../../../tests/direct_kvm/tap.rs"]
mod namespace;

use std::os::fd::AsRawFd;

use namespace::{TapInterface, good_flags, interface};

use super::super::super::mock::QUEUE_SIZE;
use super::*;

fn tap_of(fd: &OwnedFd) -> Tap {
    Tap::new(fd.try_clone().unwrap()).unwrap().0
}

fn started_on(interface: &TapInterface, features: u64) -> MockDriver {
    let taps = interface.queues.iter().map(tap_of).collect();
    let mut driver = MockDriver::new(device(taps, Arc::new(EventSink::new(None))));
    driver.start(VERSION_1 | features);
    driver
}

/// An Ethernet frame of a type that nobody answers.
fn ethernet(length: usize) -> Vec<u8> {
    let mut bytes = frame(length);
    bytes[..6].copy_from_slice(&[0xff; 6]);
    bytes[6..12].copy_from_slice(&MAC);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

#[test]
fn the_kernel_tells_what_a_tap_is() {
    let Some(tap) = interface(2, good_flags(2)) else {
        return;
    };
    for fd in &tap.queues {
        let identity = tap::TapIdentity::of(fd).unwrap();
        assert!(identity.carries_frames_after_headers());
        assert_eq!(identity.interface.to_string(), "tap0");
    }
    for flags in [
        libc::IFF_TAP | libc::IFF_NO_PI,
        libc::IFF_TAP | libc::IFF_VNET_HDR,
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
    ] {
        let other = interface(1, flags).unwrap();
        let identity = tap::TapIdentity::of(&other.queues[0]).unwrap();
        assert!(!identity.carries_frames_after_headers(), "{flags:#x}");
    }
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(tap::TapIdentity::of(&null).is_none());
}

#[test]
fn frames_pass_both_ways() {
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    let mut driver = started_on(&tap, 0);
    put_frame(&driver, BUFFERS, &ethernet(100));
    driver.submit(TX, &[(BUFFERS, 112, 0)]);
    assert_eq!(tap.receive(), ethernet(100));
    tap.send(&ethernet(200)).unwrap();
    driver.submit(RX, &[(BUFFERS, 2000, WRITE)]);
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), [(0, 212)]);
    assert_eq!(driver.bytes(BUFFERS + 12, 200), ethernet(200));
    assert_eq!(
        driver.bytes(BUFFERS, 12),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
}

#[test]
fn a_malformed_header_loses_the_frame_and_nothing_else() {
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    let mut driver = started_on(&tap, 0);
    let bad: [[u8; 12]; 5] = [
        // A checksum past the end, a segmentation of no kind, segments of no
        // length, a header longer than the frame, all ones.
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
        [0, 0x7f, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0xff, 0xff, 10, 0, 0, 0, 0, 0, 0, 0],
        [0xff; 12],
    ];
    for header in bad {
        put_frame(&driver, BUFFERS, &ethernet(100));
        driver.put(BUFFERS, &header);
        driver.submit(TX, &[(BUFFERS, 112, 0)]);
        assert_eq!(driver.take_used(TX).len(), 1);
    }
    for length in [1, 11, 12, 13, 25] {
        put_frame(&driver, BUFFERS, &ethernet(100));
        driver.submit(TX, &[(BUFFERS, length, 0)]);
        assert_eq!(driver.take_used(TX).len(), 1, "{length}");
    }
    put_frame(&driver, BUFFERS, &ethernet(60));
    driver.submit(TX, &[(BUFFERS, 72, 0)]);
    // The first that arrives.
    assert_eq!(tap.receive(), ethernet(60));
    assert!(!driver.needs_reset());
}

#[test]
fn an_interface_that_is_down_loses_frames_and_comes_up_again() {
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    let mut driver = started_on(&tap, 0);
    tap.set_up(false).unwrap();
    put_frame(&driver, BUFFERS, &ethernet(60));
    driver.submit(TX, &[(BUFFERS, 72, 0)]);
    driver.transport.process_backend();
    tap.set_up(true).unwrap();
    put_frame(&driver, BUFFERS, &ethernet(61));
    driver.submit(TX, &[(BUFFERS, 73, 0)]);
    assert_eq!(tap.receive(), ethernet(61));
    assert!(!driver.needs_reset());
}

#[test]
fn a_long_frame_spreads_over_small_buffers() {
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    tap.set_mtu(9000);
    let mut driver = started_on(&tap, MERGEABLE);
    for head in 0..QUEUE_SIZE {
        driver.submit_at(RX, head, &[(BUFFERS + u64::from(head) * 700, 700, WRITE)]);
    }
    tap.send(&ethernet(9000)).unwrap();
    driver.transport.process_backend();
    let used = driver.take_used(RX);
    assert_eq!(used.len(), 13);
    assert_eq!(
        frame_in(&driver, &used, 700)[HEADER_BYTES..],
        ethernet(9000)
    );
}

#[test]
fn a_deleted_interface_is_one_event_and_a_link_that_is_down() {
    let Some(tap) = interface(2, good_flags(2)) else {
        return;
    };
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let events = std::fs::File::from(rustix::fs::memfd_create("events", flags).unwrap());
    let sink = Arc::new(EventSink::new(Some(events.try_clone().unwrap())));
    let taps = tap.queues.iter().map(tap_of).collect();
    let mut driver = MockDriver::new(device(taps, sink));
    driver.start(VERSION_1 | MERGEABLE);
    driver.submit(RX, &[(BUFFERS, 2000, WRITE)]);
    driver.take_interrupt();
    tap.delete();
    // The loop is woken, and once.
    let backend = driver.transport.backend().unwrap();
    let ready = |patience| {
        // SAFETY: the device, and so the descriptor, lives as long as the driver.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(backend.as_raw_fd()) };
        let mut watched = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        let patience = rustix::event::Timespec {
            tv_sec: patience,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut watched, Some(&patience)).unwrap() == 1
    };
    assert!(ready(20));
    driver.transport.process_backend();
    assert!(!ready(0));
    assert!(driver.take_interrupt() & 2 != 0);
    put_frame(&driver, BUFFERS, &ethernet(60));
    driver.submit(TX, &[(BUFFERS, 72, 0)]);
    assert_eq!(driver.take_used(TX).len(), 1);
    let length = events.metadata().unwrap().len() as usize;
    let mut text = vec![0; length];
    std::os::unix::fs::FileExt::read_exact_at(&events, &mut text, 0).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("link_down"), "{text}");
    // A driver that comes later finds the same.
    driver.start(VERSION_1);
    driver.submit(RX, &[(BUFFERS, 2000, WRITE)]);
    driver.transport.process_backend();
    assert!(!driver.needs_reset());
    assert!(!ready(0));
}

#[test]
fn a_flood_for_a_driver_without_buffers_wakes_nobody_for_good() {
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    let mut driver = started_on(&tap, 0);
    for _ in 0..3000 {
        let _ = tap.send(&ethernet(60));
    }
    let backend = driver.transport.backend().unwrap();
    driver.transport.process_backend();
    // SAFETY: as above.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(backend) };
    let mut watched = [rustix::event::PollFd::new(
        &fd,
        rustix::event::PollFlags::IN,
    )];
    let no_wait = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut watched, Some(&no_wait)), Ok(0));
    driver.submit(RX, &[(BUFFERS, 2000, WRITE)]);
    assert_eq!(driver.take_used(RX), [(0, 72)]);
}

/// The checksum of RFC 1071, of which `sum` is a part already.
fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = sum + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Bytes before the payload: Ethernet, IPv4, TCP.
const HEADERS: usize = 14 + 20 + 20;

/// A TCP segment over IPv4 with `payload` bytes, its checksum left to others, and the
/// `virtio_net_hdr` that says so, and how to cut it.
fn large_segment(payload: usize) -> (Vec<u8>, Vec<u8>) {
    let mut frame = ethernet(HEADERS + payload);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let (ip, tcp) = frame[14..].split_at_mut(20);
    let length = (40 + payload) as u16;
    ip.copy_from_slice(&[
        0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 8, 1, 10, 9, 8, 2,
    ]);
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = !checksum(ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    tcp[..20].copy_from_slice(&[
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 16, 0, 0, 0, 0, 0,
    ]);
    // Of the pseudo header only, as for any checksum that is left to others.
    let pseudo = checksum(&ip[12..20], 6 + 20 + payload as u32);
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    let mut header = vec![1, 1];
    for word in [HEADERS as u16, 1000, 34, 16] {
        header.extend(word.to_le_bytes());
    }
    (header, frame)
}

const CHECKSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const SEGMENTS: u64 = CHECKSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;

#[test]
fn the_kernel_cuts_segments_and_sums_them_up_for_a_driver_that_does_not() {
    // Feature bits, and the frames that a segment of 3500 bytes becomes.
    for (features, expected) in [
        (MERGEABLE, vec![1000, 1000, 1000, 500]),
        (MERGEABLE | CHECKSUM, vec![1000, 1000, 1000, 500]),
        (MERGEABLE | SEGMENTS, vec![3500]),
        // No segments without checksums, whatever is acknowledged.
        (
            MERGEABLE | 1 << VIRTIO_NET_F_GUEST_TSO4,
            vec![1000, 1000, 1000, 500],
        ),
    ] {
        let Some(tap) = interface(1, good_flags(1)) else {
            return;
        };
        tap.use_headers();
        let mut driver = started_on(&tap, features);
        for head in 0..QUEUE_SIZE {
            let at = BUFFERS + u64::from(head) * 2000;
            driver.submit_at(RX, head, &[(at, 2000, WRITE)]);
        }
        let (header, frame) = large_segment(3500);
        tap.send(&[header.clone(), frame.clone()].concat()).unwrap();
        driver.transport.process_backend();
        let mut used = driver.take_used(RX).into_iter();
        let mut payloads = Vec::new();
        while let Some(first) = used.next() {
            let at = BUFFERS + u64::from(first.0) * 2000;
            let buffers = driver.bytes(at + 10, 1)[0];
            let rest = used.by_ref().take(usize::from(buffers) - 1);
            let all: Vec<_> = std::iter::once(first).chain(rest).collect();
            let bytes = frame_in(&driver, &all, 2000);
            payloads.push(bytes.len() - HEADER_BYTES - HEADERS);
            let tcp = &bytes[HEADER_BYTES + 34..];
            let addresses = &bytes[HEADER_BYTES + 26..HEADER_BYTES + 34];
            let whole = checksum(tcp, 6 + tcp.len() as u32);
            let whole = checksum(addresses, whole.into());
            match features & CHECKSUM {
                0 => assert_eq!((bytes[0] & 1, whole), (0, 0xffff)),
                _ => assert_eq!(
                    (bytes[0] & 1, bytes[6..10].to_vec()),
                    (1, header[6..].to_vec())
                ),
            }
        }
        assert_eq!(payloads, expected, "{features:#x}");
    }
}

#[test]
fn a_large_segment_leaves_as_one_frame_with_its_header() {
    let Some(tap) = interface(1, good_flags(1)) else {
        return;
    };
    tap.use_headers();
    let mut driver = started_on(&tap, 0);
    let (header, frame) = large_segment(60_000);
    driver.put(BUFFERS, &header);
    driver.put(BUFFERS + 12, &frame);
    driver.submit(TX, &[(BUFFERS, 12 + frame.len() as u32, 0)]);
    let received = tap.receive();
    assert_eq!(received[..10], header);
    assert_eq!(received[10..], frame);
}
