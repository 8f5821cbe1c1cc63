//! Requests in every framing a driver may choose, and in some it may not.

mod in_flight;
mod ranges;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::super::mock::{BUFFERS, MockDriver, WRITE, hostile};
use super::*;
use crate::block::extents::{Extent, ExtentDisk};
use crate::block::plain::PlainDisk;
use crate::block::ring::RingDisk;

const SECTORS: usize = 64;
const DISK_BYTES: usize = SECTORS * 512;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// What is there before the device has answered.
const UNANSWERED: u8 = 0xee;

fn content() -> Vec<u8> {
    (0..DISK_BYTES).map(|n| (n * 31 / 7 % 251) as u8).collect()
}

/// What is behind the device in a test.
#[derive(Debug, Clone, Copy)]
enum Backend {
    Plain,
    Ring,
    /// A ring that does nothing at once.
    RingOnly,
}

fn any_backend() -> impl Strategy<Value = Backend> {
    prop_oneof![
        Just(Backend::Plain),
        Just(Backend::Ring),
        Just(Backend::RingOnly),
    ]
}

impl Backend {
    fn open(self, disk: ExtentDisk) -> Box<dyn BlockBackend> {
        let ring = match self {
            Self::Plain => return Box::new(PlainDisk::new(disk)),
            Self::Ring => RingDisk::new(disk).map_err(|(disk, _)| disk),
            Self::RingOnly => RingDisk::without_shortcuts(disk).map_err(|(disk, _)| disk),
        };
        // A host without io_uring has no ring to test.
        match ring {
            Ok(ring) => Box::new(ring),
            Err(disk) => Box::new(PlainDisk::new(disk)),
        }
    }
}

fn memory_file(content: &[u8]) -> Arc<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("disk", flags).unwrap());
    file.write_all(content).unwrap();
    Arc::new(file)
}

fn disk(file: &Arc<File>, read_only: bool) -> ExtentDisk {
    let extent = Extent {
        file: Arc::clone(file),
        offset_bytes: 0,
        length_bytes: DISK_BYTES as u64,
        blob: None,
    };
    ExtentDisk::new(vec![extent], read_only).unwrap()
}

const SERIAL: Serial = *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn block(backend: Box<dyn BlockBackend>, limits: Limits, events: Arc<EventSink>) -> Block {
    Block::new("blk0".to_owned(), SERIAL, backend, limits, events).unwrap()
}

fn driver_of(backend: Box<dyn BlockBackend>, limits: Limits) -> MockDriver {
    let mut driver = MockDriver::with_events(|events| block(backend, limits, events));
    driver.start(super::super::mock::VERSION_1);
    driver.put(STATUS, &[UNANSWERED]);
    driver
}

fn driver_on(backend: Backend, read_only: bool, limits: Limits) -> (MockDriver, Arc<File>) {
    let file = memory_file(&content());
    let backend = backend.open(disk(&file, read_only));
    (driver_of(backend, limits), file)
}

fn driver(read_only: bool) -> (MockDriver, Arc<File>) {
    driver_on(Backend::Plain, read_only, Limits::default())
}

fn features(read_only: bool) -> u64 {
    let backend = Backend::Plain.open(disk(&memory_file(&content()), read_only));
    block(backend, Limits::default(), Arc::new(EventSink::new(None))).features()
}

fn put_header(driver: &MockDriver, kind: u32, sector: u64) {
    driver.put(HEADER, &kind.to_le_bytes());
    driver.put(HEADER + 8, &sector.to_le_bytes());
}

fn status(driver: &MockDriver) -> u8 {
    driver.bytes(STATUS, 1)[0]
}

fn disk_content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// One request with one data descriptor; returns the status and the used length.
fn request(driver: &mut MockDriver, kind: u32, sector: u64, length: u32, flags: u16) -> (u8, u32) {
    put_header(driver, kind, sector);
    driver.put(STATUS, &[UNANSWERED]);
    let data = (DATA, length, flags);
    driver.submit(0, &[(HEADER, 16, 0), data, (STATUS, 1, WRITE)]);
    let used = driver.wait_for_used(0, 1);
    assert_eq!(used.len(), 1, "{:?}", driver.faults());
    (status(driver), used[0].1)
}

#[test]
fn the_capacity_and_the_number_of_segments_are_told() {
    let (driver, _) = driver(true);
    assert_eq!(driver.read(0x100), SECTORS as u32);
    assert_eq!(driver.read(0x104), 0);
    assert_eq!(driver.read(0x108), SIZE_MAX);
    assert_eq!(driver.read(0x10c), SEG_MAX);
    assert_ne!(features(true) & 1 << VIRTIO_BLK_F_SIZE_MAX, 0);
    assert_ne!(features(true) & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(features(false) & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn a_request_may_be_as_long_as_its_segments_and_no_longer() {
    let disk = Disk {
        size_bytes: 1 << 30,
        read_only: true,
        features: 0,
    };
    assert!(disk.check(1, REQUEST_MAX_BYTES).is_ok());
    assert!(disk.check(1, REQUEST_MAX_BYTES + 512).is_err());
}

#[test]
fn requests_past_the_end_are_errors_and_touch_nothing() {
    let (mut driver, file) = driver(false);
    let last = SECTORS as u64 - 1;
    driver.put(DATA, &[7; 1024]);
    for (sector, length) in [
        (last, 1024),
        (last + 1, 512),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 513),
    ] {
        let write = request(&mut driver, VIRTIO_BLK_T_OUT, sector, length, 0);
        assert_eq!(write, (IO_ERROR, 1), "writing {length} at {sector}");
        let read = request(&mut driver, VIRTIO_BLK_T_IN, sector, length, WRITE);
        assert_eq!(read, (IO_ERROR, 1), "reading {length} at {sector}");
    }
    assert_eq!(driver.bytes(DATA, 1024), [7; 1024]);
    assert!(disk_content(&file) == content());
    assert_eq!(driver.faults(), [""; 0]);
}

#[test]
fn data_in_the_wrong_direction_moves_nothing() {
    let (mut driver, file) = driver(false);
    driver.put(DATA, &[7; 512]);
    // Reading into what is not writable, writing from what is not readable.
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, 512, 0), (OK, 1));
    assert_eq!(
        request(&mut driver, VIRTIO_BLK_T_OUT, 0, 512, WRITE),
        (OK, 1)
    );
    assert_eq!(driver.bytes(DATA, 512), [7; 512]);
    assert!(disk_content(&file) == content());
}

#[test]
fn a_read_only_disk_refuses_writes_and_bears_flushes() {
    let (mut driver, file) = driver(true);
    let write = request(&mut driver, VIRTIO_BLK_T_OUT, 0, 512, 0);
    assert_eq!(write, (IO_ERROR, 1));
    assert!(disk_content(&file) == content());
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, 0, 0), (OK, 1));
}

#[test]
fn the_identity_fills_what_room_there_is() {
    let (mut driver, _) = driver(true);
    for (room, written) in [(20, 20), (40, 20), (3, 3)] {
        driver.put(DATA, &[UNANSWERED; 64]);
        let answer = request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, room, WRITE);
        assert_eq!(answer, (OK, written + 1));
        let bytes = driver.bytes(DATA, 64);
        let written = written as usize;
        assert_eq!(
            bytes[..written],
            b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..written]
        );
        assert!(bytes[written..].iter().all(|byte| *byte == UNANSWERED));
    }
}

#[test]
fn unknown_types_are_unsupported() {
    let (mut driver, _) = driver(false);
    for kind in [2, 3, 5, 10, 11, 13, 14, 24, u32::MAX] {
        let answer = request(&mut driver, kind, 0, 512, WRITE);
        assert_eq!(answer, (UNSUPPORTED, 1), "type {kind}");
    }
}

/// Cuts `total` bytes at `cuts`, wherever they fall; pieces of no length and of
/// all are among them.
fn pieces(total: u32, cuts: &[u32]) -> Vec<u32> {
    let mut ends: Vec<u32> = cuts.iter().map(|cut| cut % (total + 1)).collect();
    ends.push(total);
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter()
        .map(|end| {
            let length = end - start;
            start = end;
            length
        })
        .collect()
}

fn any_request() -> impl Strategy<Value = (u64, u32, Vec<u32>, bool)> {
    (0..SECTORS as u64, 1_u32..=16).prop_flat_map(|(sector, count)| {
        let count = count.min((SECTORS as u64 - sector) as u32);
        let cuts = proptest::collection::vec(any::<u32>(), 0..10);
        (Just(sector), Just(count), cuts, any::<bool>())
    })
}

proptest! {
    /// Section 2.7.4.1: where a driver cuts its buffers is its own business.
    #[test]
    fn a_read_fills_its_buffers_however_they_are_cut(
        (sector, count, cuts, joined) in any_request(),
        backend in any_backend(),
    ) {
        let (mut driver, _) = driver_on(backend, true, Limits::default());
        put_header(&driver, VIRTIO_BLK_T_IN, sector);
        let lengths = pieces(count * 512, &cuts);
        let mut chain = vec![(HEADER, 16, 0)];
        // Each on a page of its own, in descending order.
        let place = |index: usize| DATA + (20 - index as u64) * 0x2000;
        for (index, length) in lengths.iter().enumerate() {
            chain.push((place(index), *length, WRITE));
        }
        let status = if joined {
            // The status byte is the end of the last piece.
            let last = chain.last_mut().unwrap();
            last.1 += 1;
            last.0 + u64::from(last.1) - 1
        } else {
            chain.push((STATUS, 1, WRITE));
            STATUS
        };
        driver.submit(0, &chain);
        prop_assert_eq!(driver.wait_for_used(0, 1), [(0, count * 512 + 1)]);
        prop_assert_eq!(driver.bytes(status, 1), [OK]);
        let read: Vec<u8> = lengths
            .iter()
            .enumerate()
            .flat_map(|(index, length)| driver.bytes(place(index), *length as usize))
            .collect();
        let start = sector as usize * 512;
        prop_assert!(read == content()[start..start + count as usize * 512]);
    }

    #[test]
    fn a_write_reaches_the_disk_however_its_buffers_are_cut(
        (sector, count, cuts, joined) in any_request(),
        backend in any_backend(),
    ) {
        let (mut driver, file) = driver_on(backend, false, Limits::default());
        put_header(&driver, VIRTIO_BLK_T_OUT, sector);
        let total = count * 512;
        let data: Vec<u8> = (0..total).map(|n| (n % 241) as u8).collect();
        let mut lengths = pieces(total, &cuts);
        let mut chain = vec![(HEADER, 16, 0)];
        let mut taken = 0;
        if joined {
            // The first piece follows the header in its descriptor.
            let first = lengths.remove(0);
            driver.put(HEADER + 16, &data[..first as usize]);
            chain[0].1 += first;
            taken = first as usize;
        }
        for (index, length) in lengths.iter().enumerate() {
            let at = DATA + 0x8000 + index as u64 * 0x2000;
            driver.put(at, &data[taken..taken + *length as usize]);
            chain.push((at, *length, 0));
            taken += *length as usize;
        }
        let status = DATA + 0x6_0000;
        chain.push((status, 1, WRITE));
        driver.submit(0, &chain);
        prop_assert_eq!(driver.wait_for_used(0, 1), [(0, 1)]);
        prop_assert_eq!(driver.bytes(status, 1), [OK]);
        let mut expected = content();
        let start = sector as usize * 512;
        expected[start..start + data.len()].copy_from_slice(&data);
        prop_assert!(disk_content(&file) == expected);
    }

    /// Whatever a driver does, the device writes nowhere but where it says that it
    /// may, and to its own ring; and works again after a reset.
    #[test]
    fn no_driver_makes_the_device_write_elsewhere(
        backend in any_backend(),
        acts in hostile::any_acts(1),
        kind in prop_oneof![Just(0_u32), Just(1), 0_u32..14, any::<u32>()],
        sector in prop_oneof![0_u64..80, any::<u64>()],
    ) {
        let (mut driver, _) = driver_on(backend, false, Limits::default());
        for address in (0..8).map(|index| HEADER + index * 0x40) {
            driver.put(address, &kind.to_le_bytes());
            driver.put(address + 8, &sector.to_le_bytes());
        }
        hostile::play(&mut driver, &acts)?;
        prop_assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, 512, WRITE), (OK, 513));
    }
}
