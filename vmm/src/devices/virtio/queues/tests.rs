//! Chains out and back, and who hears of it when.

use std::sync::{Arc, Mutex};

use super::super::VirtioDevice;
use super::super::mock::{BUFFERS, EVENT_INDEX, MockDriver, QUEUE_SIZE, VERSION_1, WRITE};
use super::*;

const SIZES: [u16; 1] = [QUEUE_SIZE];
/// Offsets into the driver area and the device area.
const AVAILABLE_FLAGS: u64 = 0;
const USED_EVENT: u64 = 4 + 2 * QUEUE_SIZE as u64;
const USED_FLAGS: u64 = 0;

/// Returns every chain with one byte more than it is long.
#[derive(Default)]
struct Device {
    outcomes: Arc<Mutex<Vec<Drained>>>,
    /// What each chain counts as.
    moved: u64,
}

impl VirtioDevice for Device {
    fn name(&self) -> &str {
        "mock"
    }
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn process_queue(&mut self, index: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let drained = queues.drain(index, |chain| {
            Ok(Served {
                written: chain.map(|descriptor| descriptor.len() + 1).sum(),
                moved: self.moved,
            })
        })?;
        self.outcomes.lock().unwrap().push(drained);
        Ok(drained)
    }
    fn reset(&mut self) {}
}

fn driver(features: u64) -> (MockDriver, Arc<Mutex<Vec<Drained>>>) {
    driver_that_moves(0, features)
}

fn driver_that_moves(moved: u64, features: u64) -> (MockDriver, Arc<Mutex<Vec<Drained>>>) {
    let device = Device {
        moved,
        ..Device::default()
    };
    let outcomes = Arc::clone(&device.outcomes);
    let mut driver = MockDriver::new(device);
    driver.start(features);
    (driver, outcomes)
}

fn offer(driver: &mut MockDriver, count: u16) {
    for first in 0..count {
        driver.submit_at(0, first, &[(BUFFERS, first.into(), WRITE)]);
    }
}

#[test]
fn chains_come_back_in_order_with_their_lengths() {
    let (mut driver, outcomes) = driver(VERSION_1);
    offer(&mut driver, 5);
    driver.transport.process_queue(0);
    let expected: Vec<_> = (0..5).map(|head| (head, head + 1)).collect();
    assert_eq!(driver.take_used(0), expected);
    assert_eq!(*outcomes.lock().unwrap(), [Drained::Empty]);
    assert_eq!(driver.take_interrupt(), 1);
}

#[test]
fn the_rings_go_round() {
    let (mut driver, _) = driver(VERSION_1);
    // Past 2¹⁶, where the indices wrap.
    for turn in 0..70_000_u32 {
        driver.submit(0, &[(BUFFERS, turn, WRITE)]);
        assert_eq!(driver.take_used(0), [(0, turn + 1)], "turn {turn}");
    }
    assert!(!driver.needs_reset());
}

#[test]
fn a_full_queue_is_served_in_one_go_and_looked_at_again() {
    let (mut driver, outcomes) = driver(VERSION_1);
    offer(&mut driver, QUEUE_SIZE);
    driver.transport.process_queue(0);
    assert_eq!(driver.take_used(0).len(), usize::from(QUEUE_SIZE));
    assert_eq!(*outcomes.lock().unwrap(), [Drained::Again]);
    // The transport rings for itself.
    assert_eq!(driver.transport.doorbells()[0].read().unwrap(), 1);
}

#[test]
fn a_device_that_moves_much_gives_others_their_turn() {
    let (mut driver, outcomes) = driver_that_moves(BYTES_PER_TURN / 2, VERSION_1);
    offer(&mut driver, 5);
    for (used, outcome) in [
        (2, Drained::Again),
        (2, Drained::Again),
        (1, Drained::Empty),
    ] {
        driver.transport.process_queue(0);
        assert_eq!(driver.take_used(0).len(), used);
        assert_eq!(outcomes.lock().unwrap().pop(), Some(outcome));
    }
}

#[test]
fn without_chains_nobody_is_interrupted() {
    let (mut driver, _) = driver(VERSION_1);
    driver.transport.process_queue(0);
    assert_eq!(driver.take_used(0), []);
    assert_eq!(driver.take_interrupt(), 0);
}

#[test]
fn a_driver_that_polls_is_not_interrupted() {
    let (mut driver, _) = driver(VERSION_1);
    let [_, available, _] = MockDriver::queue_addresses(0);
    driver.put(available + AVAILABLE_FLAGS, &1_u16.to_le_bytes());
    offer(&mut driver, 3);
    driver.transport.process_queue(0);
    assert_eq!(driver.take_used(0).len(), 3);
    assert_eq!(driver.take_interrupt(), 0);
}

#[test]
fn with_the_event_index_the_driver_says_when_it_wants_to_hear() {
    let (mut driver, _) = driver(VERSION_1 | EVENT_INDEX);
    let [_, available, _] = MockDriver::queue_addresses(0);
    // When the fifth chain has come back.
    driver.put(available + USED_EVENT, &4_u16.to_le_bytes());
    for (count, interrupt) in [(4, 0), (1, 1), (1, 0)] {
        offer(&mut driver, count);
        driver.transport.process_queue(0);
        assert_eq!(driver.take_used(0).len(), usize::from(count));
        assert_eq!(driver.take_interrupt(), interrupt);
    }
}

#[test]
fn the_doorbell_is_wanted_whenever_the_queue_is_empty() {
    let (mut driver, _) = driver(VERSION_1);
    offer(&mut driver, 3);
    driver.transport.process_queue(0);
    let [_, _, used] = MockDriver::queue_addresses(0);
    let no_notify = driver.bytes(used + USED_FLAGS, 2);
    assert_eq!(no_notify, [0, 0]);
}

#[test]
fn an_available_index_that_jumps_is_a_fault() {
    let (mut driver, _) = driver(VERSION_1);
    driver.set_available(0, QUEUE_SIZE + 1);
    driver.transport.process_queue(0);
    assert!(driver.needs_reset());
    assert_eq!(driver.take_used(0), []);
}

#[test]
fn a_queue_that_is_taken_away_is_not_touched() {
    let (mut driver, outcomes) = driver(VERSION_1);
    driver.write(super::super::mmio::register::QUEUE_READY, 0);
    offer(&mut driver, 3);
    driver.transport.process_queue(0);
    assert_eq!(driver.take_used(0), []);
    assert_eq!(*outcomes.lock().unwrap(), [Drained::Empty]);
}

/// The driver's queue, as the transport would hand it to the device.
fn queue_of(index: usize) -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    let [table, available, used] = MockDriver::queue_addresses(index).map(|a| Some(a as u32));
    queue.set_desc_table_address(table, None);
    queue.set_avail_ring_address(available, None);
    queue.set_used_ring_address(used, None);
    queue.set_ready(true);
    queue
}

#[test]
fn the_rings_of_a_queue_that_is_not_ready_are_neither_read_nor_written() {
    let (driver, _) = driver(VERSION_1);
    driver.set_available(0, 7);
    let [_, _, used] = MockDriver::queue_addresses(0);
    driver.put(used, &[0xa5; 64]);
    let mut queue = queue_of(0);
    queue.set_ready(false);
    let mut queue = [queue];
    let interrupt = Interrupt::new().unwrap();
    let mut queues = Queues::new(&mut queue, &driver.memory, &interrupt);
    assert!(!queues.want_doorbell(0, true).unwrap());
    assert!(!queues.want_doorbell(0, false).unwrap());
    assert!(queues.pop(0).unwrap().is_none());
    assert!(!queues.has_available(0));
    queues.push_used(0, 1, 2).unwrap();
    queues.notify(0).unwrap();
    assert_eq!(driver.bytes(used, 64), [0xa5; 64]);
}

#[test]
fn a_chain_that_is_put_back_comes_again() {
    let (mut driver, _) = driver(VERSION_1);
    offer(&mut driver, 2);
    let mut queue = [queue_of(0)];
    let interrupt = Interrupt::new().unwrap();
    let mut queues = Queues::new(&mut queue, &driver.memory, &interrupt);
    let head = |queues: &mut Queues| queues.pop(0).unwrap().map(|chain| chain.head_index());
    assert!(queues.has_available(0));
    assert_eq!(head(&mut queues), Some(0));
    queues.unpop(0);
    assert_eq!(head(&mut queues), Some(0));
    assert_eq!(head(&mut queues), Some(1));
    assert_eq!(head(&mut queues), None);
    assert!(!queues.has_available(0));
    // A queue that does not exist has nothing.
    assert!(queues.pop(1).unwrap().is_none());
}

/// Whether the driver hears of buffers returned together, in groups of `groups`, if it
/// waits for the one with index `awaited`.
fn hears_of(groups: &[u16], awaited: u16) -> bool {
    let (mut driver, _) = driver(VERSION_1 | EVENT_INDEX);
    let [_, available, _] = MockDriver::queue_addresses(0);
    driver.put(available + USED_EVENT, &awaited.to_le_bytes());
    let count = groups.iter().sum();
    offer(&mut driver, count);
    let mut queue = [queue_of(0)];
    queue[0].set_event_idx(true);
    let interrupt = Interrupt::new().unwrap();
    let mut queues = Queues::new(&mut queue, &driver.memory, &interrupt);
    let mut heads = (0..count).map(|_| queues.pop(0).unwrap().unwrap().head_index());
    let heads: Vec<u16> = heads.by_ref().collect();
    let mut rest = heads.as_slice();
    for size in groups {
        let (group, after) = rest.split_at(usize::from(*size));
        let group: Vec<(u16, u32)> = group.iter().map(|head| (*head, 1)).collect();
        queues.push_used_together(0, &group).unwrap();
        rest = after;
    }
    queues.notify(0).unwrap();
    interrupt.status() != 0
}

#[test]
fn the_driver_hears_of_the_buffer_it_waits_for_wherever_in_a_batch_it_lies() {
    for groups in [&[1, 3][..], &[1, 1, 4], &[3, 1], &[2, 3], &[5], &[1, 1]] {
        let count = groups.iter().sum();
        for awaited in 0..count {
            assert!(hears_of(groups, awaited), "{awaited} of {groups:?}");
        }
        assert!(!hears_of(groups, count), "{groups:?}");
    }
}
