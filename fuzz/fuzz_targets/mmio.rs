//! The registers of the transport, before a driver has done anything as it should.
#![no_main]

use arbitrary::{Result, Unstructured};
use fuzz::acts::{register, value};
use fuzz::{files, memory};
use libfuzzer_sys::fuzz_target;
use vmm::bus::BusDevice;
use vmm::devices::virtio::entropy::Entropy;
use vmm::devices::virtio::mock::{FEATURES_OK, MockDriver, NEEDS_RESET};

const MAX_STEPS: usize = 200;
/// Bits of the status that a driver sets: ACKNOWLEDGE to FEATURES_OK, and FAILED.
const DRIVER_BITS: u32 = 0x8f;

fn step(u: &mut Unstructured, driver: &MockDriver) -> Result<()> {
    let transport = &driver.transport;
    let before = driver.status();
    match u.int_in_range(0..=7)? {
        0..=3 => driver.write(register(u)?, value(u)?),
        4 => {
            let width = u.int_in_range(0..=16)?;
            let offset = u.arbitrary::<u64>()? >> u.int_in_range(0..=63)?;
            transport.write(offset, u.bytes(width)?);
        }
        5 => {
            let width = u.int_in_range(0..=16)?;
            let offset = u.arbitrary::<u64>()? >> u.int_in_range(0..=63)?;
            transport.read(offset, &mut vec![0xff; width]);
        }
        6 => transport.process_queue(u.int_in_range(0..=2)?),
        _ => transport.process_backend(),
    }
    let after = driver.status();
    assert_eq!(after & !(DRIVER_BITS | NEEDS_RESET), 0, "an unknown bit");
    // The driver clears bits by a reset alone.
    assert!(
        after == 0 || after & before == before,
        "{before:#x} to {after:#x}"
    );
    let ok = after & 4 == 0 || after & FEATURES_OK != 0;
    assert!(ok, "DRIVER_OK without features");
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let device = Entropy::new(files::with(&[0x5a; 64]));
    let mut driver = MockDriver::in_memory(memory::for_driver(), |_| device);
    let mut u = Unstructured::new(data);
    for _ in 0..MAX_STEPS {
        if u.is_empty() || step(&mut u, &driver).is_err() {
            break;
        }
    }
    driver.start(1 << 32);
    assert!(!driver.needs_reset());
});
