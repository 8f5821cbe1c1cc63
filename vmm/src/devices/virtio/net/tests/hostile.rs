//! Drivers that break the rules.

use proptest::prelude::*;

use super::super::super::mock::{Descriptor, EVENT_INDEX, MEMORY_BYTES, NEXT, QUEUE_SIZE};
use super::*;

/// The device asks for reset, and works after it.
#[track_caller]
fn faults(queue: usize, features: u64, pieces: &[(u64, u32, u16)], reason: &str) {
    let (mut driver, peers) = started(2, features);
    peers[0].send(&frame(20));
    driver.transport.process_backend();
    driver.submit(queue, pieces);
    assert!(driver.needs_reset());
    let faults = driver.faults();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains(reason), "{faults:?}");
    works_after_reset(&mut driver, &peers[0]);
}

#[track_caller]
fn works_after_reset(driver: &mut MockDriver, peer: &Peer) {
    while peer.receive().is_some() {}
    driver.start(VERSION_1);
    put_frame(driver, BUFFERS, &frame(77));
    driver.submit(TX, &[(BUFFERS, 89, 0)]);
    assert_eq!(driver.take_used(TX), [(0, 0)]);
    assert_eq!(peer.receive().unwrap()[HEADER_BYTES..], frame(77));
}

#[test]
fn frames_to_send_that_are_none_are_faults() {
    faults(TX, 0, &[(BUFFERS, 100, WRITE)], "writable");
    faults(TX, 0, &[(BUFFERS, 100, 0), (BUFFERS, 1, WRITE)], "writable");
    faults(TX, 0, &[(MEMORY_BYTES - 50, 100, 0)], "outside");
    faults(TX, 0, &[(u64::MAX - 50, 100, 0)], "outside");
    faults(TX, 0, &[(BUFFERS, u32::MAX, 0)], "outside");
}

#[test]
fn buffers_that_are_none_are_faults() {
    for features in [0, MERGEABLE] {
        faults(RX, features, &[(BUFFERS, 100, 0)], "not writable");
        faults(RX, features, &[(BUFFERS, 11, WRITE)], "header");
        faults(RX, features, &[(BUFFERS, 0, WRITE)], "header");
        faults(RX, features, &[(MEMORY_BYTES - 50, 100, WRITE)], "outside");
        faults(RX, features, &[(u64::MAX - 50, 100, WRITE)], "outside");
        faults(RX, features, &[(BUFFERS, u32::MAX, WRITE)], "outside");
    }
}

#[test]
fn commands_that_cannot_be_answered_are_faults() {
    let features = MULTIQUEUE | CONTROL;
    faults(4, features, &[(BUFFERS, 4, 0)], "acknowledgement");
    faults(4, features, &[(BUFFERS, 4, 0), (BUFFERS, 0, WRITE)], "room");
    faults(
        4,
        features,
        &[(MEMORY_BYTES - 1, 4, 0), (BUFFERS, 1, WRITE)],
        "outside",
    );
    faults(
        4,
        features,
        &[(BUFFERS, 4, 0), (MEMORY_BYTES, 1, WRITE)],
        "outside",
    );
}

#[test]
fn a_command_of_four_gigabytes_is_refused_and_copied_only_where_it_is_looked_at() {
    let (mut driver, _peers) = started(2, MULTIQUEUE | CONTROL);
    driver.submit(4, &[(BUFFERS, u32::MAX - 1, 0), (BUFFERS + 8, 1, WRITE)]);
    assert_eq!(driver.bytes(BUFFERS + 8, 1), [1]);
    assert!(!driver.needs_reset());
}

#[test]
fn a_frame_too_short_or_too_long_is_dropped_and_its_buffers_come_back() {
    let (mut driver, _peers) = started(1, 0);
    for length in [0, MAX_FRAME_BYTES as u32 + 1, 500_000] {
        driver.submit(TX, &[(BUFFERS, length, 0)]);
        assert_eq!(driver.take_used(TX).len(), 1, "{length}");
    }
    assert!(!driver.needs_reset());
}

#[test]
fn buffers_in_more_pieces_than_one_system_call_takes_hold_frames_all_the_same() {
    const PIECES: u64 = 300;
    const INDIRECT: u16 = 4;
    let (mut driver, peers) = started(1, MERGEABLE);
    // Each buffer is a table of single bytes, far from each other.
    for head in 0..u64::from(QUEUE_SIZE) {
        let table = BUFFERS + head * PIECES * 16;
        for piece in 0..PIECES {
            let address: u64 = 0x8_0000 + (head * PIECES + piece) * 2;
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend(1_u32.to_le_bytes());
            let flags = if piece + 1 == PIECES {
                WRITE
            } else {
                WRITE | NEXT
            };
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend((piece as u16 + 1).to_le_bytes());
            driver.put(table + piece * 16, &descriptor);
        }
        driver.submit_at(RX, head as u16, &[(table, PIECES as u32 * 16, INDIRECT)]);
    }
    // The first is too long for all of them.
    for length in [5000, 4000, 30] {
        peers[0].send(&frame(length));
    }
    driver.transport.process_backend();
    let used = driver.take_used(RX);
    let heads: Vec<_> = used.iter().map(|(head, _)| *head).collect();
    assert_eq!(heads, (0..15).collect::<Vec<_>>());
    let bytes = driver.bytes(0x8_0000, 15 * PIECES as usize * 2);
    let received: Vec<u8> = bytes.iter().step_by(2).copied().collect();
    assert_eq!(received[HEADER_BYTES..][..4000], frame(4000));
    assert_eq!(used[13], (13, 4012 - 13 * 300));
    assert_eq!(received[14 * 300 + HEADER_BYTES..][..30], frame(30));
    assert!(!driver.needs_reset());
}

#[test]
fn chains_without_end_are_faults_in_every_queue() {
    for queue in [RX, TX] {
        let flags = if queue == RX { WRITE } else { 0 };
        // A loop, and a step past the table.
        for next in [0, QUEUE_SIZE, u16::MAX] {
            let (mut driver, peers) = started(1, 0);
            let descriptor = Descriptor {
                address: BUFFERS,
                length: 64,
                flags: flags | NEXT,
                next,
            };
            driver.describe(queue, 0, descriptor);
            driver.offer(queue, 0);
            peers[0].send(&frame(20));
            driver.transport.process_backend();
            driver.transport.process_queue(queue);
            assert!(driver.needs_reset(), "queue {queue}, next {next}");
            works_after_reset(&mut driver, &peers[0]);
        }
    }
}

#[test]
fn heads_past_the_table_and_indices_that_jump_are_faults() {
    for queue in [RX, TX] {
        for spoil in [
            |driver: &mut MockDriver, queue| driver.offer(queue, QUEUE_SIZE),
            |driver: &mut MockDriver, queue| driver.set_available(queue, 1000),
        ] {
            let (mut driver, peers) = started(1, 0);
            peers[0].send(&frame(20));
            driver.transport.process_backend();
            spoil(&mut driver, queue);
            driver.transport.process_queue(queue);
            assert!(driver.needs_reset(), "queue {queue}");
            works_after_reset(&mut driver, &peers[0]);
        }
    }
}

#[test]
fn a_peer_that_is_gone_is_one_event_and_a_link_that_is_down() {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let events = std::fs::File::from(rustix::fs::memfd_create("events", flags).unwrap());
    let sink = Arc::new(EventSink::new(Some(events.try_clone().unwrap())));
    let (taps, peers): (Vec<_>, Vec<_>) = (0..2).map(|_| pretend_tap()).unzip();
    let mut driver = MockDriver::new(device(taps, sink));
    driver.start(VERSION_1);
    driver.submit(RX, &[(BUFFERS, 100, WRITE)]);
    driver.take_interrupt();
    assert_eq!(driver.read(register::CONFIG_GENERATION), 0);
    drop(peers);
    for _ in 0..5 {
        driver.transport.process_backend();
        driver.submit(TX, &[(BUFFERS, 100, 0)]);
        driver.submit(3, &[(BUFFERS, 100, 0)]);
    }
    assert_eq!(driver.take_used(TX).len(), 5);
    assert!(driver.take_interrupt() & 2 != 0);
    let mut config = [0; CONFIG_BYTES];
    driver.transport.read(register::CONFIG, &mut config);
    assert_eq!(config[6..8], [0, 0]);
    assert_eq!(driver.read(register::CONFIG_GENERATION), 1);
    let text = text_of(events);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains("link_down") && text.contains("net0"),
        "{text}"
    );
    // It starts again without a link.
    driver.start(VERSION_1);
    driver.submit(TX, &[(BUFFERS, 100, 0)]);
    assert_eq!(driver.take_used(TX).len(), 1);
    assert!(!driver.needs_reset());
}

fn text_of(file: std::fs::File) -> String {
    let length = file.metadata().unwrap().len() as usize;
    let mut bytes = vec![0; length];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// One thing a driver may do.
#[derive(Debug, Clone)]
enum Step {
    Describe {
        queue: usize,
        index: u16,
        descriptor: (u64, u32, u16, u16),
    },
    Offer {
        queue: usize,
        head: u16,
    },
    SetAvailable {
        queue: usize,
        index: u16,
    },
    Ring {
        queue: usize,
    },
    Frame {
        length: usize,
    },
    Backend,
    TakeAway {
        queue: usize,
    },
    Write {
        register: u64,
        value: u32,
    },
    Start {
        features: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..5_usize;
    let address = prop_oneof![
        Just(BUFFERS),
        0..MEMORY_BYTES + 64,
        any::<u64>(),
        // The rings themselves.
        (0..0xf000_u64),
    ];
    let length = prop_oneof![Just(0), 1..16_u32, 12..4000_u32, any::<u32>()];
    let flags = prop_oneof![
        Just(WRITE),
        Just(0),
        Just(NEXT),
        Just(NEXT | WRITE),
        Just(4),
        0..8_u16
    ];
    prop_oneof![
        4 => (queue.clone(), 0..QUEUE_SIZE, (address, length, flags, 0..QUEUE_SIZE + 2))
            .prop_map(|(queue, index, descriptor)| Step::Describe { queue, index, descriptor }),
        4 => (queue.clone(), 0..QUEUE_SIZE + 1).prop_map(|(queue, head)| Step::Offer { queue, head }),
        1 => (queue.clone(), any::<u16>())
            .prop_map(|(queue, index)| Step::SetAvailable { queue, index }),
        4 => queue.clone().prop_map(|queue| Step::Ring { queue }),
        3 => (0..3000_usize).prop_map(|length| Step::Frame { length }),
        3 => Just(Step::Backend),
        1 => queue.prop_map(|queue| Step::TakeAway { queue }),
        1 => (0..0x110_u64, any::<u32>())
            .prop_map(|(register, value)| Step::Write { register: register & !3, value }),
        2 => prop_oneof![
            Just(0), Just(MERGEABLE), Just(MERGEABLE | EVENT_INDEX), Just(MULTIQUEUE | CONTROL),
            Just(CONTROL), Just(EVENT_INDEX | MULTIQUEUE | CONTROL | MERGEABLE),
        ].prop_map(|features| Step::Start { features }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_order_of_steps_of_a_driver_breaks_the_device(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let (mut driver, peers) = started(2, MERGEABLE);
        for step in steps {
            match step {
                Step::Describe { queue, index, descriptor: (address, length, flags, next) } => {
                    driver.describe(queue, index, Descriptor { address, length, flags, next });
                }
                Step::Offer { queue, head } => driver.offer(queue, head),
                Step::SetAvailable { queue, index } => driver.set_available(queue, index),
                Step::Ring { queue } => driver.transport.process_queue(queue),
                Step::Frame { length } => {
                    let bytes = frame(length);
                    // A full socket drops it, as a tap does.
                    let bytes = [&[0; HEADER_BYTES][..], &bytes].concat();
                    let _ = rustix::net::send(&peers[0].0, &bytes, SendFlags::empty());
                    let _ = rustix::net::send(&peers[1].0, &bytes, SendFlags::empty());
                }
                Step::Backend => driver.transport.process_backend(),
                Step::TakeAway { queue } => {
                    driver.write(register::QUEUE_SEL, queue as u32);
                    driver.write(register::QUEUE_READY, 0);
                }
                Step::Write { register, value } => driver.write(register, value),
                Step::Start { features } => driver.start(VERSION_1 | features),
            }
        }
        works_after_reset(&mut driver, &peers[0]);
    }
}
