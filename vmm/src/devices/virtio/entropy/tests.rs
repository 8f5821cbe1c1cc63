//! Random bytes, and no more of them than is good.

use proptest::prelude::*;

use super::super::mock::hostile::{any_acts, play};
use super::super::mock::{BUFFERS, MockDriver, WRITE};
use super::*;

fn driver(path: &str) -> MockDriver {
    MockDriver::started(Entropy::new(File::open(path).unwrap()))
}

#[test]
fn buffers_are_filled_in_order_up_to_the_bound() {
    let mut driver = driver("/dev/urandom");
    let pieces = [(BUFFERS, 100, WRITE), (BUFFERS + 0x1000, 1000, WRITE)];
    driver.submit(0, &pieces);
    assert_eq!(driver.take_used(0), [(0, REQUEST_BYTES as u32)]);
    // Of 100 random bytes, 50 zeroes would be a wonder.
    let zeroes = |bytes: Vec<u8>| bytes.iter().filter(|byte| **byte == 0).count();
    assert!(zeroes(driver.bytes(BUFFERS, 100)) < 50);
    assert!(zeroes(driver.bytes(BUFFERS + 0x1000, REQUEST_BYTES - 100)) < 50);
    assert_eq!(driver.bytes(BUFFERS + 100, 100), [0; 100]);
    let past = driver.bytes(BUFFERS + 0x1000 + REQUEST_BYTES as u64 - 100, 500);
    assert_eq!(past, [0; 500]);
}

#[test]
fn a_source_without_bytes_gives_none() {
    for path in ["/dev/null", "/"] {
        let mut driver = driver(path);
        driver.submit(0, &[(BUFFERS, 100, WRITE)]);
        assert_eq!(driver.take_used(0), [(0, 0)]);
        assert!(!driver.needs_reset());
    }
}

#[test]
fn what_is_not_writable_or_not_memory_stays_as_it_is() {
    let mut driver = driver("/dev/urandom");
    driver.submit(0, &[(BUFFERS, 100, 0)]);
    driver.submit(0, &[(1 << 40, 100, WRITE)]);
    driver.submit(0, &[(u64::MAX, u32::MAX, WRITE)]);
    assert_eq!(driver.take_used(0), [(0, 0); 3]);
    assert_eq!(driver.bytes(BUFFERS, 100), [0; 100]);
    assert!(!driver.needs_reset());
}

proptest! {
    /// Whatever a driver does.
    #[test]
    fn no_driver_breaks_the_device(acts in any_acts(1)) {
        play(&mut driver("/dev/urandom"), &acts)?;
    }
}
