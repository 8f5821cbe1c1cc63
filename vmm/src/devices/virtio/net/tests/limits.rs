//! Frames within limits, and those that must wait.

use super::super::super::limiter::Rate;
use super::*;
use crate::event::monotonic_ns;

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second, burst })
}

fn bytes(per_second: u64, burst: u64) -> Limits {
    Limits {
        bandwidth: rate(per_second, burst),
        operations: None,
    }
}

fn frames(per_second: u64, burst: u64) -> Limits {
    Limits {
        bandwidth: None,
        operations: rate(per_second, burst),
    }
}

fn limited(pairs: usize, features: u64, limits: NetLimits) -> (MockDriver, Vec<Peer>) {
    let (taps, peers) = (0..pairs).map(|_| pretend_tap()).unzip();
    let options = NetOptions {
        limits,
        ..options(taps)
    };
    let memory = crate::memory::create(4096).unwrap();
    let events = Arc::new(EventSink::new(None));
    let net = Net::new("net0".to_owned(), options, &memory, events).unwrap();
    let mut driver = MockDriver::new(net);
    driver.start(VERSION_1 | features);
    (driver, peers)
}

fn transmit(limits: Limits) -> NetLimits {
    NetLimits {
        transmit: limits,
        ..NetLimits::default()
    }
}

fn receive(limits: Limits) -> NetLimits {
    NetLimits {
        receive: limits,
        ..NetLimits::default()
    }
}

fn lift(driver: &MockDriver, direction: Direction) {
    let result = driver
        .transport
        .set_limits(Some(direction), Limits::default());
    assert_eq!(result, Ok(()));
}

/// Makes so many frames of 100 bytes available to be sent.
fn offer_frames(driver: &mut MockDriver, count: u16) {
    for head in 0..count {
        let at = BUFFERS + u64::from(head) * 0x1000;
        put_frame(driver, at, &frame(100));
        driver.submit_at(TX, head, &[(at, 112, 0)]);
    }
    driver.transport.process_queue(TX);
}

fn offer_buffers(driver: &mut MockDriver, queue: usize, count: u16) {
    for head in 0..count {
        let at = BUFFERS + u64::from(head) * 0x1000;
        driver.submit_at(queue, head, &[(at, 0x1000, WRITE)]);
    }
    driver.transport.process_queue(queue);
}

#[test]
fn frames_to_send_over_the_limit_wait_in_the_queue_and_leave_when_it_is_lifted() {
    let (mut driver, peers) = limited(1, 0, transmit(bytes(1, 250)));
    offer_frames(&mut driver, 5);
    // 250 bytes are enough for two.
    assert_eq!(driver.take_used(TX).len(), 2);
    driver.transport.process_queue(TX);
    assert_eq!(driver.take_used(TX), []);
    assert!(peers[0].receive().is_some() && peers[0].receive().is_some());
    assert!(peers[0].receive().is_none());
    // The other direction is free.
    offer_buffers(&mut driver, RX, 1);
    peers[0].send(&frame(60));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX).len(), 1);
    lift(&driver, Direction::Transmit);
    assert_eq!(driver.wait_for_used(TX, 3).len(), 3);
}

#[test]
fn frames_to_receive_over_the_limit_wait_in_the_tap_and_come_when_it_is_lifted() {
    let (mut driver, peers) = limited(1, MERGEABLE, receive(frames(1, 2)));
    offer_buffers(&mut driver, RX, 8);
    for length in 100..105 {
        peers[0].send(&frame(length));
    }
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), [(0, 112), (1, 113)]);
    driver.transport.process_queue(RX);
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), []);
    // The other direction is free.
    put_frame(&driver, BUFFERS + 0x8000, &frame(60));
    driver.submit(TX, &[(BUFFERS + 0x8000, 72, 0)]);
    assert_eq!(driver.take_used(TX).len(), 1);
    lift(&driver, Direction::Receive);
    let used = driver.wait_for_used(RX, 3);
    assert_eq!(used, [(2, 114), (3, 115), (4, 116)]);
    assert_eq!(driver.bytes(BUFFERS + 0x200c, 102), frame(102));
}

#[test]
fn what_is_limited_goes_on_by_itself_when_tokens_return() {
    let both = NetLimits {
        transmit: frames(1000, 1),
        receive: frames(1000, 1),
    };
    let (mut driver, peers) = limited(1, 0, both);
    offer_frames(&mut driver, 6);
    assert_eq!(driver.wait_for_used(TX, 6).len(), 6);
    offer_buffers(&mut driver, RX, 6);
    for _ in 0..6 {
        peers[0].send(&frame(60));
    }
    assert_eq!(driver.wait_for_used(RX, 6).len(), 6);
}

#[test]
fn a_frame_larger_than_the_burst_passes_when_the_bucket_is_full() {
    let (mut driver, peers) = limited(1, 0, transmit(bytes(1, 50)));
    offer_frames(&mut driver, 2);
    assert_eq!(driver.take_used(TX).len(), 1);
    assert!(peers[0].receive().is_some());
    let (mut driver, peers) = limited(1, 0, receive(bytes(1, 50)));
    offer_buffers(&mut driver, RX, 2);
    peers[0].send(&frame(100));
    peers[0].send(&frame(100));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), [(0, 112)]);
}

#[test]
fn a_frame_spread_over_buffers_that_had_to_wait_comes_whole() {
    let (mut driver, peers) = limited(1, MERGEABLE, receive(frames(1, 1)));
    for head in 0..10 {
        driver.submit_at(RX, head, &[(BUFFERS + u64::from(head) * 100, 100, WRITE)]);
    }
    peers[0].send(&frame(50));
    peers[0].send(&frame(450));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX), [(0, 62)]);
    lift(&driver, Direction::Receive);
    let used = driver.wait_for_used(RX, 5);
    let bytes = frame_in(&driver, &used, 100);
    assert_eq!(bytes[NUM_BUFFERS..HEADER_BYTES], [5, 0]);
    assert_eq!(bytes[HEADER_BYTES..], frame(450));
}

#[test]
fn a_guest_that_takes_no_frames_while_limited_costs_nothing_and_may_come_back() {
    let (mut driver, peers) = limited(1, MERGEABLE, receive(frames(1, 1)));
    for _ in 0..3 {
        peers[0].send(&frame(60));
    }
    for _ in 0..10 {
        driver.transport.process_backend();
        driver.transport.process_queue(RX);
        driver.transport.process_timer(1);
    }
    assert_eq!(driver.take_used(RX), []);
    // One frame is the driver's, one is held back; then the driver starts anew.
    offer_buffers(&mut driver, RX, 4);
    assert_eq!(driver.take_used(RX).len(), 1);
    driver.start(VERSION_1 | MERGEABLE);
    lift(&driver, Direction::Receive);
    offer_buffers(&mut driver, RX, 4);
    // The one that was held back went with the buffer it was in.
    assert_eq!(driver.wait_for_used(RX, 1), [(0, 72)]);
    assert!(!driver.needs_reset());
}

#[test]
fn a_frame_held_back_goes_with_the_queue_that_is_taken_away() {
    let (mut driver, peers) = limited(1, 0, receive(frames(1, 1)));
    offer_buffers(&mut driver, RX, 4);
    peers[0].send(&frame(60));
    peers[0].send(&frame(61));
    driver.transport.process_backend();
    assert_eq!(driver.take_used(RX).len(), 1);
    driver.write(register::QUEUE_SEL, RX as u32);
    driver.write(register::QUEUE_READY, 0);
    lift(&driver, Direction::Receive);
    driver.transport.process_timer(1);
    assert_eq!(driver.take_used(RX), []);
    assert!(!driver.needs_reset());
}

#[test]
fn queues_that_share_a_limit_take_turns() {
    // Each has more than it may send.
    let (mut driver, peers) = limited(2, MULTIQUEUE | CONTROL, transmit(frames(1000, 1)));
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    for queue in [1, 3] {
        for head in 0..16 {
            let at = BUFFERS + u64::from(head) * 0x1000;
            put_frame(&driver, at, &frame(100));
            driver.submit_at(queue, head, &[(at, 112, 0)]);
        }
    }
    driver.transport.process_queue(1);
    driver.transport.process_queue(3);
    let mut first = 0;
    // Long before the first is done the second has sent something.
    while first < 12 && peers[1].receive().is_none() {
        first += driver.wait_for_used(1, 1).len();
    }
    assert!(first < 12, "{first} frames of one queue, none of the other");
}

#[test]
fn limits_are_set_for_one_direction_at_a_time() {
    use super::super::super::mmio::LimitsRefused;
    let (driver, _peers) = limited(1, 0, NetLimits::default());
    assert_eq!(
        driver.transport.set_limits(None, Limits::default()),
        Err(LimitsRefused::OneForEach)
    );
    for direction in [Direction::Transmit, Direction::Receive] {
        lift(&driver, direction);
    }
}

/// What passed, with moments before and after.
type Passed = Vec<(u64, u64, u64)>;

/// In no window has more passed than burst, or the largest frame, and rate allow.
fn holds(passed: &Passed, rate: Rate, largest: u64) -> bool {
    let credit = u128::from(rate.burst.max(largest)) * 1_000_000_000;
    passed.iter().enumerate().all(|(first, (begin, ..))| {
        let mut sum = 0;
        passed[first..].iter().all(|(_, end, count)| {
            sum += u128::from(*count) * 1_000_000_000;
            sum <= credit + u128::from(end - begin) * u128::from(rate.per_second)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn in_no_window_more_leaves_or_comes_than_burst_and_rate_allow(
        lengths in proptest::collection::vec(14_usize..1500, 4..16),
        per_second in 20_000_u64..2_000_000,
        burst in 1_u64..5000,
        frames_per_second in 500_u64..100_000,
        frames_burst in 1_u64..8,
    ) {
        let limits = Limits {
            bandwidth: rate(per_second, burst),
            operations: rate(frames_per_second, frames_burst),
        };
        let both = NetLimits { transmit: limits, receive: limits };
        let (mut driver, peers) = limited(1, MERGEABLE, both);
        let largest = *lengths.iter().max().unwrap() as u64;
        for queue in [TX, RX] {
            for (length, head) in lengths.iter().zip(0..) {
                let at = BUFFERS + u64::from(head) * 0x1000;
                if queue == TX {
                    put_frame(&driver, at, &frame(*length));
                    driver.submit_at(TX, head, &[(at, (length + HEADER_BYTES) as u32, 0)]);
                } else {
                    driver.submit_at(RX, head, &[(at, 0x1000, WRITE)]);
                    peers[0].send(&frame(*length));
                }
            }
            let mut left = lengths.iter();
            let (mut moved, mut counted): (Passed, Passed) = (Vec::new(), Vec::new());
            let mut before = monotonic_ns();
            driver.transport.process_queue(queue);
            driver.transport.process_backend();
            while left.len() > 0 {
                let used = driver.wait_for_used(queue, 0);
                let after = monotonic_ns();
                for (_, written) in &used {
                    let length = *left.next().unwrap();
                    // In order, whole.
                    prop_assert!(queue == TX || *written as usize == length + HEADER_BYTES);
                    moved.push((before, after, length as u64));
                    counted.push((before, after, 1));
                }
                if left.len() > 0 {
                    before = monotonic_ns();
                    driver.wait_for_event();
                }
            }
            prop_assert!(holds(&moved, limits.bandwidth.unwrap(), largest));
            prop_assert!(holds(&counted, limits.operations.unwrap(), 1));
        }
    }
}
