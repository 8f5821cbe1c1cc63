//! Flushes, and requests that are none, seen by a driver.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::mmio::register;
use super::super::mock::hostile::{any_acts, play};
use super::super::mock::{BUFFERS, MEMORY_BYTES, MockDriver, WRITE};
use super::mapping::Mapping;
use super::*;
use crate::arch::layout::PMEM_ALIGNMENT;
use crate::block;
use crate::block::extents::{Extent, ExtentDisk};

const START: GuestAddress = GuestAddress(0x1_2340_0000);
const BYTES: u64 = 0x1_0020_0000;
const ANSWER: u64 = BUFFERS + 64;
const GOOD: [(u64, u32, u16); 2] = [(BUFFERS, 4, 0), (ANSWER, 4, WRITE)];

fn backend(file: File) -> Box<dyn BlockBackend> {
    let extent = Extent {
        file: Arc::new(file),
        offset_bytes: 0,
        length_bytes: 4096,
        blob: None,
    };
    block::open(ExtentDisk::new(vec![extent], false).unwrap())
}

/// Where flushes must wait, mostly: see [`block::open`].
fn stored() -> File {
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let fd = rustix::fs::open(std::env::temp_dir(), flags, 0o600.into()).unwrap();
    File::from(fd)
}

fn memory_file() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    File::from(rustix::fs::memfd_create("pmem", flags).unwrap())
}

fn driver(backend: Option<Box<dyn BlockBackend>>) -> MockDriver {
    MockDriver::started(Pmem::new("pmem0".to_owned(), START, BYTES, backend))
}

/// Read-only, in memory, on a disk.
fn drivers() -> [MockDriver; 3] {
    [None, Some(memory_file()), Some(stored())].map(|file| driver(file.map(backend)))
}

#[test]
fn the_configuration_says_where_it_is() {
    let driver = driver(None);
    let number = |offset| u64::from(driver.read(register::CONFIG + offset));
    assert_eq!(number(4) << 32 | number(0), START.0);
    assert_eq!(number(12) << 32 | number(8), BYTES);
    assert_eq!(number(16), 0);
}

#[test]
fn flushes_are_answered_with_success() {
    for mut driver in drivers() {
        driver.put(BUFFERS, &[0; 4]);
        driver.put(ANSWER, &[7; 8]);
        driver.submit(0, &GOOD);
        assert_eq!(driver.wait_for_used(0, 1), [(0, 4)]);
        assert_eq!(driver.bytes(ANSWER, 8), [0, 0, 0, 0, 7, 7, 7, 7]);
    }
}

#[test]
fn a_file_that_cannot_be_flushed_is_told() {
    // fdatasync(2) knows no pipes.
    let (pipe, _writer) = std::io::pipe().unwrap();
    let mut driver = driver(Some(backend(File::from(OwnedFd::from(pipe)))));
    driver.put(BUFFERS, &[0; 4]);
    driver.submit(0, &GOOD);
    assert_eq!(driver.wait_for_used(0, 1), [(0, 4)]);
    assert_eq!(driver.bytes(ANSWER, 4), [0xff; 4]);
    assert!(!driver.needs_reset());
}

#[test]
fn other_requests_fail() {
    for mut driver in drivers() {
        for kind in [1_u32, 0x0100_0000, u32::MAX] {
            driver.put(BUFFERS, &kind.to_le_bytes());
            driver.submit(0, &GOOD);
            assert_eq!(driver.take_used(0), [(0, 4)]);
            assert_eq!(driver.bytes(ANSWER, 4), [0xff; 4]);
        }
    }
}

#[test]
fn requests_of_another_form_are_faults() {
    let chains: [&[(u64, u32, u16)]; 9] = [
        &[(BUFFERS, 3, 0), (ANSWER, 4, WRITE)],
        &[(BUFFERS, 4, 0), (ANSWER, 3, WRITE)],
        &[(BUFFERS, 4, 0)],
        &[(ANSWER, 4, WRITE)],
        &[(MEMORY_BYTES - 2, 4, 0), (ANSWER, 4, WRITE)],
        &[(BUFFERS, 4, 0), (MEMORY_BYTES - 2, 4, WRITE)],
        &[(BUFFERS, 4, 0), (u64::MAX, 4, WRITE)],
        // Where the device itself is.
        &[(START.0, 4, 0), (ANSWER, 4, WRITE)],
        &[(BUFFERS, 4, 0), (START.0, 4, WRITE)],
    ];
    for chain in chains {
        for mut driver in drivers() {
            driver.submit(0, chain);
            assert!(driver.needs_reset(), "{chain:?}");
            assert_eq!(driver.faults().len(), 1);
        }
    }
}

#[test]
fn a_reset_waits_for_flushes_in_flight() {
    let mut driver = driver(Some(backend(stored())));
    driver.put(BUFFERS, &[0; 4]);
    driver.put(ANSWER, &[7; 4]);
    driver.submit(0, &GOOD);
    driver.reset();
    let after = driver.bytes(ANSWER, 4);
    driver.transport.process_backend();
    assert_eq!(driver.bytes(ANSWER, 4), after);
}

#[test]
fn mappings_are_aligned_and_end_on_huge_pages() {
    for (bytes, mapped) in [
        (1, PMEM_ALIGNMENT),
        (PMEM_ALIGNMENT, PMEM_ALIGNMENT),
        (PMEM_ALIGNMENT + 1, 2 * PMEM_ALIGNMENT),
    ] {
        let file = memory_file();
        file.set_len(bytes).unwrap();
        let mapping = Mapping::new(&file, bytes, true).unwrap();
        assert_eq!(mapping.bytes(), mapped);
        assert!(mapping.address().is_multiple_of(PMEM_ALIGNMENT));
    }
}

#[test]
fn what_cannot_be_mapped_is_an_error() {
    assert!(Mapping::new(&memory_file(), u64::MAX, true).is_err());
    let read_only = File::open("/proc/self/exe").unwrap();
    assert!(Mapping::new(&read_only, 4096, false).is_err());
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert!(Mapping::new(&File::from(OwnedFd::from(pipe)), 4096, true).is_err());
}

proptest! {
    /// Whatever a driver does.
    #[test]
    fn no_driver_breaks_the_device(acts in any_acts(1), on_disk in any::<bool>()) {
        let file = if on_disk { stored() } else { memory_file() };
        play(&mut driver(Some(backend(file))), &acts)?;
    }

    /// Whatever a driver does to one that is only read.
    #[test]
    fn no_driver_breaks_a_read_only_device(acts in any_acts(1)) {
        play(&mut driver(None), &acts)?;
    }
}
