//! Pages given away, wishes and statistics, seen by a driver.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::mmio::register;
use super::super::mock::hostile::{any_acts, play};
use super::super::mock::{BUFFERS, MEMORY_BYTES, MockDriver, NEXT, VERSION_1, WRITE};
use super::*;

const ALL: BalloonFeatures = BalloonFeatures {
    deflate_on_oom: true,
    statistics: true,
    free_page_reporting: true,
};
const ALL_BITS: u64 = VERSION_1 | F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
const CONFIGURATION_CHANGE: u32 = 2;

/// A page of the list, and pages to give away.
const LIST: u64 = BUFFERS;
const PAGES: u64 = BUFFERS + 0x1_0000;

fn started(features: BalloonFeatures, bits: u64) -> (MockDriver, BalloonHandle) {
    let (device, handle) = Balloon::new(features, MEMORY_BYTES).unwrap();
    let mut driver = MockDriver::new(device);
    driver.start(bits);
    (driver, handle)
}

fn all() -> (MockDriver, BalloonHandle) {
    started(ALL, ALL_BITS)
}

fn put_list(driver: &MockDriver, numbers: &[u32]) -> (u64, u32, u16) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    driver.put(LIST, &bytes);
    (LIST, bytes.len() as u32, 0)
}

fn number(address: u64) -> u32 {
    (address / PAGE_BYTES) as u32
}

/// Which of the pages from [`PAGES`] on read as zeroes, after all were filled.
fn zeroed(driver: &MockDriver, count: u64) -> Vec<bool> {
    let first_byte = |index| driver.bytes(PAGES + index * PAGE_BYTES, PAGE_BYTES as usize);
    (0..count)
        .map(|index| {
            let page = first_byte(index);
            let zero = page.iter().all(|byte| *byte == 0);
            assert!(zero || page.iter().all(|byte| *byte == 7), "half a page");
            zero
        })
        .collect()
}

fn fill(driver: &MockDriver, count: u64) {
    driver.put(PAGES, &vec![7; (count * PAGE_BYTES) as usize]);
}

#[test]
fn only_what_is_asked_for_is_offered() {
    for (features, bits, queues) in [
        (BalloonFeatures::default(), 0, 2),
        (
            BalloonFeatures {
                deflate_on_oom: true,
                ..Default::default()
            },
            F_DEFLATE_ON_OOM,
            2,
        ),
        (
            BalloonFeatures {
                free_page_reporting: true,
                ..Default::default()
            },
            F_PAGE_REPORTING,
            3,
        ),
        (ALL, F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING, 4),
    ] {
        let (device, _) = Balloon::new(features, MEMORY_BYTES).unwrap();
        assert_eq!(device.features(), bits);
        assert_eq!(device.queue_sizes().len(), queues);
    }
}

#[test]
fn inflated_pages_go_and_their_neighbours_stay() {
    let (mut driver, _) = all();
    fill(&driver, 6);
    // In no order, one twice.
    let first = number(PAGES);
    let list = put_list(&driver, &[first + 4, first + 1, first + 2, first + 1]);
    driver.submit(INFLATE, &[list]);
    assert_eq!(driver.take_used(INFLATE), [(0, 0)]);
    let expected = [false, true, true, false, true, false];
    assert_eq!(zeroed(&driver, 6), expected);
    // They can be used again, and deflating takes nothing away.
    fill(&driver, 6);
    driver.submit(DEFLATE, &[list]);
    assert_eq!(driver.take_used(DEFLATE), [(0, 0)]);
    assert_eq!(zeroed(&driver, 6), [false; 6]);
    assert!(!driver.needs_reset());
}

#[test]
fn nothing_is_given_away_of_a_list_with_a_page_that_is_not_there() {
    for bad in [number(MEMORY_BYTES), u32::MAX] {
        let (mut driver, _) = all();
        fill(&driver, 2);
        let list = put_list(&driver, &[number(PAGES), bad]);
        driver.submit(INFLATE, &[list]);
        assert!(driver.needs_reset());
        assert_eq!(
            driver.faults(),
            ["queue 0: a page that is not guest memory"]
        );
        assert_eq!(zeroed(&driver, 2), [false; 2]);
    }
}

#[test]
fn a_list_has_a_longest_length() {
    let (mut driver, _) = all();
    let longest = MAX_PAGES_A_REQUEST as u32 * 4;
    // Page 0 throughout, which no queue of this driver's lies in but the first.
    let zeroes = (BUFFERS + 0x2_0000, longest, 0);
    driver.submit(DEFLATE, &[zeroes]);
    assert_eq!(driver.take_used(DEFLATE).len(), 1);
    assert!(!driver.needs_reset());
    driver.submit(DEFLATE, &[(BUFFERS + 0x2_0000, longest + 4, 0)]);
    assert!(driver.needs_reset());
}

#[test]
fn reported_ranges_go_as_far_as_they_are_whole_pages() {
    let (mut driver, handle) = all();
    fill(&driver, 4);
    let range = (PAGES + 1, 3 * PAGE_BYTES as u32, WRITE);
    driver.submit(REPORTING, &[range]);
    assert_eq!(driver.take_used(REPORTING), [(0, 0)]);
    assert_eq!(zeroed(&driver, 4), [false, true, true, false]);
    assert_eq!(handle.reported_bytes(), 3 * PAGE_BYTES);
}

#[test]
fn nothing_is_given_away_of_a_report_with_a_range_that_is_not_there() {
    let bad = [
        (MEMORY_BYTES - PAGE_BYTES, 2 * PAGE_BYTES as u32),
        (MEMORY_BYTES, 1),
        (0, 0xf000_0000),
        (u64::MAX - 1, 4096),
    ];
    for (address, length) in bad {
        let (mut driver, handle) = all();
        fill(&driver, 1);
        let good = (PAGES, PAGE_BYTES as u32, WRITE);
        driver.submit(REPORTING, &[good, (address, length, WRITE)]);
        assert!(driver.needs_reset());
        assert_eq!(zeroed(&driver, 1), [false]);
        assert_eq!(handle.reported_bytes(), 0);
    }
}

#[test]
fn optional_queues_leave_no_gap() {
    // Without statistics, the reporting queue is the third.
    let (mut driver, handle) = started(ALL, VERSION_1 | F_PAGE_REPORTING);
    fill(&driver, 1);
    driver.submit(2, &[(PAGES, PAGE_BYTES as u32, WRITE)]);
    assert_eq!(zeroed(&driver, 1), [true]);
    assert_eq!(handle.reported_bytes(), PAGE_BYTES);
    // There is no fourth.
    driver.submit(3, &[(PAGES, PAGE_BYTES as u32, WRITE)]);
    assert_eq!(driver.take_used(3), []);
    assert!(!driver.needs_reset());
}

fn config(driver: &MockDriver, offset: u64) -> u32 {
    driver.read(register::CONFIG + offset)
}

#[test]
fn a_new_target_is_a_change_of_the_configuration() {
    let (driver, handle) = all();
    assert_eq!(driver.take_interrupt(), 0);
    let generation = driver.read(register::CONFIG_GENERATION);
    handle.set_target(64 * PAGE_BYTES).unwrap();
    assert_eq!(config(&driver, 0), 0, "the device has not heard of it yet");
    driver.transport.process_backend();
    assert_eq!(config(&driver, 0), 64);
    assert_eq!(driver.take_interrupt(), CONFIGURATION_CHANGE);
    let next = driver.read(register::CONFIG_GENERATION);
    assert_ne!(next, generation);
    // The same again is none.
    handle.set_target(64 * PAGE_BYTES).unwrap();
    driver.transport.process_backend();
    assert_eq!(driver.take_interrupt(), 0);
    assert_eq!(driver.read(register::CONFIG_GENERATION), next);
}

#[test]
fn a_target_set_before_there_is_a_driver_is_there_when_it_comes() {
    let (device, handle) = Balloon::new(ALL, MEMORY_BYTES).unwrap();
    let mut driver = MockDriver::new(device);
    handle.set_target(3 * PAGE_BYTES).unwrap();
    driver.transport.process_backend();
    assert_eq!(driver.take_interrupt(), 0, "nobody to interrupt");
    driver.start(ALL_BITS);
    assert_eq!(config(&driver, 0), 3);
    driver.reset();
    assert_eq!(config(&driver, 0), 3);
}

#[test]
fn the_driver_writes_what_it_has_given_and_nothing_else() {
    let (mut driver, handle) = all();
    driver.write(register::CONFIG + 4, 5);
    assert_eq!(handle.actual_bytes(), 5 * PAGE_BYTES);
    driver.write(register::CONFIG, 77);
    driver.write(register::CONFIG + 8, 77);
    assert_eq!([0, 4, 8].map(|at| config(&driver, at)), [0, 5, 0]);
    // In any width, and across the border.
    use crate::bus::BusDevice;
    driver.transport.write(register::CONFIG + 3, &[9, 1]);
    driver.transport.write(register::CONFIG + 7, &[2, 9, 9]);
    driver.transport.write(u64::MAX - 2, &[9; 8]);
    assert_eq!(config(&driver, 0), 0);
    assert_eq!(handle.actual_bytes(), 0x0200_0001 * PAGE_BYTES);
    driver.reset();
    assert_eq!(handle.actual_bytes(), 0);
}

/// Makes the statistics buffer say that so much memory is free.
fn tell(driver: &mut MockDriver, first: u16, free: u64) {
    let mut entries = Vec::new();
    for (tag, value) in [(4_u16, free), (1000, 1), (0, u64::MAX)] {
        entries.extend(tag.to_le_bytes());
        entries.extend(value.to_le_bytes());
    }
    driver.put(LIST, &entries);
    driver.submit_at(STATISTICS, first, &[(LIST, entries.len() as u32, 0)]);
    driver.transport.process_queue(STATISTICS);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let (mut driver, handle) = all();
    tell(&mut driver, 0, 1);
    assert_eq!(handle.take_statistics(), None, "nobody has asked");
    assert_eq!(driver.take_used(STATISTICS), []);
    for free in 2..10 {
        handle.ask_for_statistics().unwrap();
        driver.transport.process_backend();
        assert_eq!(driver.take_used(STATISTICS), [(0, 0)]);
        assert_eq!(handle.take_statistics(), None);
        tell(&mut driver, 0, free);
        let expected = Statistics {
            free_bytes: Some(free),
            swap_in_bytes: Some(u64::MAX),
            ..Statistics::default()
        };
        assert_eq!(handle.take_statistics(), Some(expected));
    }
}

#[test]
fn statistics_asked_for_before_there_is_a_buffer_come_with_the_first() {
    let (mut driver, handle) = all();
    handle.ask_for_statistics().unwrap();
    driver.transport.process_backend();
    tell(&mut driver, 0, 5);
    let told = handle.take_statistics().unwrap();
    assert_eq!(told.free_bytes, Some(5));
}

#[test]
fn a_driver_with_two_statistics_buffers_gets_the_first_one_back() {
    let (mut driver, _) = all();
    tell(&mut driver, 0, 1);
    tell(&mut driver, 1, 2);
    assert_eq!(driver.take_used(STATISTICS), [(0, 0)]);
}

#[test]
fn a_reset_forgets_the_statistics_buffer() {
    let (mut driver, handle) = all();
    tell(&mut driver, 0, 1);
    driver.reset();
    assert_eq!(
        handle.ask_for_statistics(),
        Err(handle::BalloonError::NoStatistics)
    );
    driver.start(ALL_BITS);
    handle.ask_for_statistics().unwrap();
    driver.transport.process_backend();
    assert_eq!(driver.take_used(STATISTICS), []);
    assert!(!driver.needs_reset());
}

#[test]
fn targets_are_whole_pages_of_what_there_is() {
    let (_, handle) = all();
    for bytes in [1, PAGE_BYTES - 1, MEMORY_BYTES + PAGE_BYTES, u64::MAX] {
        let error = handle.set_target(bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("target_bytes is {bytes}")));
    }
    handle.set_target(MEMORY_BYTES).unwrap();
    assert_eq!(handle.target_bytes(), MEMORY_BYTES);
}

proptest! {
    /// Whatever a driver does, while the host wants pages and statistics.
    #[test]
    fn no_driver_breaks_the_device(acts in any_acts(4), wanted in any::<u64>()) {
        let (mut driver, handle) = all();
        let _ = handle.set_target(wanted % MEMORY_BYTES / PAGE_BYTES * PAGE_BYTES);
        driver.transport.process_backend();
        play(&mut driver, &acts)?;
    }

    /// Exactly the listed pages are given away, however the list is cut up.
    #[test]
    fn exactly_the_listed_pages_go(
        listed in proptest::collection::vec(0_u32..32, 0..300),
        cuts in proptest::collection::vec(1_u32..200, 0..8),
    ) {
        let (mut driver, _) = all();
        fill(&driver, 32);
        let numbers: Vec<u32> = listed.iter().map(|n| number(PAGES) + n).collect();
        let (mut address, mut left, _) = put_list(&driver, &numbers);
        let mut pieces = Vec::new();
        for cut in cuts {
            let cut = cut.min(left);
            pieces.push((address, cut, 0));
            (address, left) = (address + u64::from(cut), left - cut);
        }
        pieces.push((address, left, 0));
        driver.submit(INFLATE, &pieces);
        prop_assert_eq!(driver.take_used(INFLATE), [(0, 0)]);
        let expected: Vec<bool> = (0..32).map(|page| listed.contains(&page)).collect();
        prop_assert_eq!(zeroed(&driver, 32), expected);
    }

    /// Whatever descriptors say on whatever queue, the device lives or asks for
    /// reset, and works afterwards.
    #[test]
    fn no_chain_breaks_the_device(
        queue in 0_usize..4,
        chain in proptest::collection::vec(
            (any_address(), any_length(), 0_u16..8, 0_u16..20), 1..12),
        noise in proptest::collection::vec(any::<u8>(), 256),
        asked in any::<bool>(),
    ) {
        let (mut driver, handle) = all();
        driver.put(LIST, &noise);
        for ((address, length, flags, next), index) in chain.iter().zip(0..) {
            let descriptor = super::super::mock::Descriptor {
                address: *address,
                length: *length,
                flags: *flags | (NEXT * u16::from(index % 2 == 0)),
                next: *next,
            };
            driver.describe(queue, index, descriptor);
        }
        if asked {
            handle.ask_for_statistics().unwrap();
        }
        driver.offer(queue, 0);
        driver.transport.process_queue(queue);
        driver.transport.process_backend();
        driver.start(ALL_BITS);
        prop_assert!(!driver.needs_reset());
        fill(&driver, 1);
        let list = put_list(&driver, &[number(PAGES)]);
        driver.submit(INFLATE, &[list]);
        prop_assert_eq!(zeroed(&driver, 1), [true]);
    }

    /// No address outside of the range is touched by [`discard`].
    #[test]
    fn discard_takes_whole_pages_within_the_range(start in 0_u64..40_000, bytes in 0_u64..40_000) {
        let (driver, _) = all();
        fill(&driver, 20);
        discard(&driver.memory, GuestAddress(PAGES + start), bytes);
        let gone = zeroed(&driver, 20);
        for (page, gone) in (0_u64..).zip(gone) {
            let (first, end) = (page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
            prop_assert_eq!(gone, start <= first && end <= start + bytes, "page {}", page);
        }
    }
}

/// Addresses in and at the ends of what matters.
fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(LIST),
        Just(PAGES),
        Just(MEMORY_BYTES - 1),
        Just(MEMORY_BYTES),
        Just(u64::MAX),
        BUFFERS..MEMORY_BYTES,
        any::<u64>(),
    ]
}

fn any_length() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(u32::MAX), 0_u32..600, any::<u32>()]
}

#[test]
fn memory_past_a_region_is_left_alone() {
    let memory = crate::memory::create(1 << 20).unwrap();
    memory.write_obj(7_u8, GuestAddress((1 << 20) - 1)).unwrap();
    // Beyond its end there is other memory of this process.
    discard(&memory, GuestAddress(1 << 20), u64::from(u32::MAX));
    discard(&memory, GuestAddress(u64::MAX), 1);
    discard(&memory, GuestAddress(0), u64::MAX);
    assert!(!is_memory(&memory, GuestAddress((1 << 20) - 1), 2));
    assert!(is_memory(&memory, GuestAddress((1 << 20) - 1), 1));
}
