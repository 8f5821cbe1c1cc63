//! Registers and life cycle, seen by a driver.

use std::sync::Mutex;

use proptest::prelude::*;

use super::super::mock::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, EVENT_INDEX, FEATURES_OK, MockDriver, NEEDS_RESET, QUEUE_SIZE,
    VERSION_1,
};
use super::registers::MAGIC;
use super::*;
use crate::bus::BusDevice;

mod panics;

const CONFIG: [u8; 6] = [1, 2, 3, 4, 5, 6];
const SIZES: [u16; 2] = [256, 4];
const OWN_FEATURE: u64 = 1 << 5;

/// Tells what was asked of it.
#[derive(Default)]
struct Device {
    calls: Arc<Mutex<Vec<Call>>>,
    faulty: bool,
    /// Whether each event changes its configuration.
    restless: bool,
    changed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Activate(u64),
    Queue(usize),
    WriteConfig(u64, usize),
    Reset,
}

impl Device {
    fn call(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
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
        OWN_FEATURE
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::devices::virtio::read_config_bytes(&CONFIG, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.call(Call::WriteConfig(offset, data.len()));
    }
    fn take_configuration_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
    fn process_backend(&mut self, _: Option<&mut Queues>) -> Result<(), DeviceFault> {
        self.changed = self.restless;
        Ok(())
    }
    fn activate(&mut self, features: u64) {
        self.call(Call::Activate(features));
    }
    fn process_queue(&mut self, index: usize, _: &mut Queues) -> Result<Drained, DeviceFault> {
        self.call(Call::Queue(index));
        self.changed = self.restless;
        if self.faulty {
            return Err(DeviceFault::Chain {
                queue: index,
                reason: "made up",
            });
        }
        Ok(Drained::Empty)
    }
    fn reset(&mut self) {
        self.call(Call::Reset);
    }
}

fn driver(faulty: bool) -> (MockDriver, Arc<Mutex<Vec<Call>>>) {
    let calls = Arc::default();
    let device = Device {
        calls: Arc::clone(&calls),
        faulty,
        ..Device::default()
    };
    (MockDriver::new(device), calls)
}

#[test]
fn a_driver_recognizes_the_device() {
    let (driver, _) = driver(false);
    assert_eq!(driver.read(register::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(register::VERSION), 2);
    assert_eq!(driver.read(register::DEVICE_ID), 42);
    assert_eq!(driver.status(), 0);
    let mut features = 0;
    for half in 0..2 {
        driver.write(register::DEVICE_FEATURES_SEL, half);
        features |= u64::from(driver.read(register::DEVICE_FEATURES)) << (32 * half);
    }
    assert_eq!(features & OWN_FEATURE, OWN_FEATURE);
    assert_eq!(
        features & (VERSION_1 | EVENT_INDEX),
        VERSION_1 | EVENT_INDEX
    );
    driver.write(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
    // No shared memory: section 4.2.2 says a length of all ones.
    assert_eq!(driver.read(0xb0), u32::MAX);
    assert_eq!(driver.read(0xb4), u32::MAX);
}

#[test]
fn each_queue_tells_its_own_size() {
    let (driver, _) = driver(false);
    for (select, size) in [(0, 256), (1, 4), (2, 0), (u32::MAX, 0)] {
        driver.write(register::QUEUE_SEL, select);
        assert_eq!(driver.read(register::QUEUE_SIZE_MAX), size);
    }
}

#[test]
fn a_proper_start_activates_once_with_the_accepted_features() {
    let (mut driver, calls) = driver(false);
    driver.start(VERSION_1 | OWN_FEATURE);
    assert_eq!(
        driver.status(),
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    );
    driver.add_status(DRIVER_OK);
    driver.transport.process_queue(1);
    let calls = calls.lock().unwrap();
    let features = VERSION_1 | OWN_FEATURE;
    assert_eq!(
        *calls,
        [Call::Reset, Call::Activate(features), Call::Queue(1)]
    );
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [VERSION_1 | 1 << 6, VERSION_1 | 1 << 63, OWN_FEATURE, 0] {
        let (driver, _) = driver(false);
        assert!(!driver.negotiate(features), "{features:#x}");
        driver.add_status(DRIVER_OK);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    }
}

#[test]
fn features_stand_once_they_are_agreed_on() {
    let (driver, calls) = driver(false);
    assert!(driver.negotiate(VERSION_1));
    driver.write(register::DRIVER_FEATURES_SEL, 0);
    driver.write(register::DRIVER_FEATURES, u32::MAX);
    driver.add_status(DRIVER_OK);
    assert_eq!(*calls.lock().unwrap(), [Call::Activate(VERSION_1)]);
}

#[test]
fn a_device_that_is_not_started_leaves_its_queues_alone() {
    let (driver, calls) = driver(false);
    driver.write(register::QUEUE_NOTIFY, 0);
    driver.transport.process_queue(0);
    driver.negotiate(VERSION_1);
    driver.transport.process_queue(0);
    driver.transport.process_queue(99);
    assert_eq!(*calls.lock().unwrap(), []);
}

#[test]
fn queues_are_set_up_between_features_and_start_and_at_no_other_time() {
    let (mut driver, _) = driver(false);
    let addresses = MockDriver::queue_addresses(0);
    let ready = |driver: &MockDriver| {
        driver.write(register::QUEUE_SEL, 0);
        driver.read(register::QUEUE_READY)
    };
    driver.place_queue(0, 16, addresses);
    assert_eq!(ready(&driver), 0, "before the features");
    driver.negotiate(VERSION_1);
    driver.place_queue(0, 16, addresses);
    assert_eq!(ready(&driver), 1);
    driver.add_status(DRIVER_OK);
    driver.place_queue(1, 4, MockDriver::queue_addresses(1));
    driver.write(register::QUEUE_SEL, 1);
    assert_eq!(driver.read(register::QUEUE_READY), 0, "after the start");
    driver.reset();
    assert_eq!(ready(&driver), 0, "after a reset");
}

#[test]
fn a_queue_can_be_taken_away_at_any_time() {
    let (mut driver, _) = driver(false);
    driver.start(VERSION_1);
    driver.write(register::QUEUE_SEL, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 1);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    // But not given back.
    driver.write(register::QUEUE_READY, 1);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
}

#[test]
fn a_fault_stops_the_device_until_it_is_reset() {
    let (mut driver, calls) = driver(true);
    driver.start(VERSION_1);
    driver.transport.process_queue(0);
    assert!(driver.needs_reset());
    assert_eq!(driver.take_interrupt(), 2, "a configuration change");
    driver.transport.process_queue(0);
    driver.transport.process_queue(1);
    assert_eq!(driver.faults(), ["queue 0: made up"]);
    driver.start(VERSION_1);
    assert!(!driver.needs_reset());
    driver.transport.process_queue(1);
    assert_eq!(driver.faults(), ["queue 0: made up", "queue 1: made up"]);
    let calls = calls.lock().unwrap();
    let queues = calls.iter().filter(|call| matches!(call, Call::Queue(_)));
    assert_eq!(queues.count(), 2);
}

#[test]
fn rings_outside_memory_are_a_fault_at_the_start() {
    for index in 0..3 {
        let (mut driver, calls) = driver(false);
        assert!(driver.negotiate(VERSION_1));
        let mut addresses = MockDriver::queue_addresses(0);
        addresses[index] = 1 << 40;
        driver.place_queue(0, QUEUE_SIZE.into(), addresses);
        driver.add_status(DRIVER_OK);
        assert!(driver.needs_reset());
        assert_eq!(driver.faults().len(), 1);
        assert_eq!(*calls.lock().unwrap(), [], "not activated");
    }
}

#[test]
fn interrupts_stay_until_they_are_acknowledged() {
    let (mut driver, _) = driver(true);
    driver.start(VERSION_1);
    driver.transport.process_queue(0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 2);
    driver.write(register::INTERRUPT_ACK, 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 2);
    driver.write(register::INTERRUPT_ACK, 2);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
}

#[test]
fn the_configuration_reads_in_any_width_and_as_zero_past_its_end() {
    let (driver, _) = driver(false);
    let read = |offset, length| {
        let mut bytes = vec![0xee; length];
        driver.transport.read(0x100 + offset, &mut bytes);
        bytes
    };
    assert_eq!(read(0, 8), [1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!(read(1, 1), [2]);
    assert_eq!(read(5, 4), [6, 0, 0, 0]);
    assert_eq!(read(0xe00, 4), [0; 4]);
    assert_eq!(read(u64::MAX - 0x100, 4), [0; 4]);
}

#[test]
fn each_change_of_the_configuration_has_a_generation_and_an_interrupt() {
    let mut driver = MockDriver::new(Device {
        restless: true,
        ..Device::default()
    });
    let mut generations = vec![driver.read(register::CONFIG_GENERATION)];
    driver.transport.process_backend();
    assert_eq!(driver.take_interrupt(), 0, "there is no driver yet");
    generations.push(driver.read(register::CONFIG_GENERATION));
    driver.start(VERSION_1);
    for _ in 0..3 {
        driver.transport.process_queue(0);
        assert_eq!(driver.take_interrupt(), 2, "a configuration change");
        generations.push(driver.read(register::CONFIG_GENERATION));
    }
    let mut distinct = generations.clone();
    distinct.dedup();
    assert_eq!(distinct, generations);
    // It is the device's to count, not the driver's.
    driver.write(register::CONFIG_GENERATION, 77);
    driver.reset();
    assert_eq!(
        driver.read(register::CONFIG_GENERATION),
        *generations.last().unwrap()
    );
}

#[test]
fn what_the_driver_writes_to_the_configuration_reaches_the_device_as_it_is() {
    let (driver, calls) = driver(false);
    driver.transport.write(register::CONFIG + 3, &[1]);
    driver.transport.write(u64::MAX, &[1; 8]);
    driver.transport.write(register::CONFIG - 1, &[1; 8]);
    let expected = [
        Call::WriteConfig(3, 1),
        Call::WriteConfig(u64::MAX - register::CONFIG, 8),
    ];
    assert_eq!(*calls.lock().unwrap(), expected);
}

#[test]
fn registers_take_aligned_words_only() {
    let (driver, _) = driver(false);
    driver
        .transport
        .write(register::STATUS, &[ACKNOWLEDGE as u8]);
    driver.transport.write(register::STATUS, &[1; 8]);
    driver.transport.write(register::STATUS + 1, &[1; 4]);
    driver.transport.write(register::STATUS, &[]);
    assert_eq!(driver.status(), 0);
    for length in [1, 2, 3, 8] {
        let mut bytes = vec![0xee; length];
        driver.transport.read(register::MAGIC_VALUE, &mut bytes);
        assert_eq!(bytes, vec![0; length]);
    }
}

proptest! {
    /// What a driver writes, it writes in vain if it is out of order.
    #[test]
    fn no_writes_break_the_order_of_the_status_bits(
        writes in proptest::collection::vec((0_u64..0x110, any::<u32>()), 0..200),
        statuses in proptest::collection::vec(0_u32..256, 1..20),
    ) {
        let (mut driver, _) = driver(false);
        let mut statuses = statuses.into_iter().cycle();
        for (offset, value) in writes {
            driver.write(offset, value);
            let before = driver.status();
            let written = statuses.next().unwrap();
            driver.write(register::STATUS, written);
            let status = driver.status();
            if written == 0 {
                prop_assert_eq!(status, 0);
            } else {
                prop_assert_eq!(status & before, before, "bits were cleared");
                prop_assert_eq!(status & !(written | before | NEEDS_RESET), 0);
            }
            prop_assert!(status & DRIVER_OK == 0 || status & FEATURES_OK != 0);
        }
        // Whatever has happened, a reset makes it good.
        driver.start(VERSION_1);
        prop_assert!(!driver.needs_reset());
    }
}
