//! Devices that do what none may, to see that it is noticed.

use super::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mock::NEXT;
use crate::devices::virtio::queues::{DeviceFault, Drained, Queues};

/// Writes one byte whenever its doorbell rings.
struct Stray(u64);

impl VirtioDevice for Stray {
    fn name(&self) -> &str {
        "stray"
    }

    fn device_type(&self) -> u32 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn process_queue(&mut self, _: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let at = GuestAddress(self.0);
        queues.memory().write_obj(0xee_u8, at).unwrap();
        Ok(Drained::Empty)
    }

    fn reset(&mut self) {}
}

/// What comes of a device that writes `at` an address while a driver does `acts`.
fn played(at: u64, acts: &[Act]) -> Result<(), String> {
    let mut driver = MockDriver::started(Stray(at));
    let mut play = Play::new(&driver);
    for act in acts {
        play.act(&mut driver, act)?;
    }
    play.end(&mut driver)
}

fn buffer(flags: u16) -> Act {
    let descriptor = Descriptor {
        address: BUFFERS,
        length: 16,
        flags,
        next: 1,
    };
    Act::Describe(0, 0, descriptor)
}

#[test]
fn a_write_into_a_writable_buffer_is_fine() {
    assert_eq!(played(BUFFERS, &[buffer(WRITE), Act::Notify(0)]), Ok(()));
}

#[test]
fn a_write_elsewhere_is_noticed() {
    let [table, _, used] = MockDriver::queue_addresses(0);
    for at in [
        BUFFERS + 16,
        MEMORY_BYTES - 1,
        table + 0x200,
        used + USED_BYTES,
    ] {
        let told = played(at, &[buffer(WRITE), Act::Notify(0)]);
        assert_eq!(told, Err(format!("the device wrote to {at:#x}")));
    }
    let told = played(BUFFERS, &[buffer(NEXT), Act::Notify(0)]);
    assert_eq!(told, Err(format!("the device wrote to {BUFFERS:#x}")));
}

#[test]
fn a_write_is_noticed_before_each_reset() {
    let acts = [Act::Notify(0), Act::Reset];
    assert!(played(BUFFERS, &acts).is_err());
    let acts = [
        Act::Notify(0),
        Act::WriteRegister(register::STATUS, vec![0; 4]),
    ];
    assert!(played(BUFFERS, &acts).is_err());
}
