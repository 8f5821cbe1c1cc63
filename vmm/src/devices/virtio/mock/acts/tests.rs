//! Devices that do what none may, to see that it is noticed.

use super::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mock::NEXT;
use crate::devices::virtio::queues::{DeviceFault, Drained, Queues};

/// Writes something somewhere whenever its doorbell rings.
struct Stray {
    device_type: u32,
    at: u64,
    bytes: Vec<u8>,
}

impl VirtioDevice for Stray {
    fn name(&self) -> &str {
        "stray"
    }

    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn process_queue(&mut self, _: usize, queues: &mut Queues) -> Result<Drained, DeviceFault> {
        let at = GuestAddress(self.at);
        queues.memory().write_slice(&self.bytes, at).unwrap();
        Ok(Drained::Empty)
    }

    fn reset(&mut self) {}
}

/// What comes of a device that writes a byte `at` an address while a driver does `acts`.
fn played(at: u64, acts: &[Act]) -> Result<(), String> {
    let bytes = vec![0xee];
    let device_type = 1;
    played_with(
        Stray {
            device_type,
            at,
            bytes,
        },
        acts,
    )
}

fn played_with(device: Stray, acts: &[Act]) -> Result<(), String> {
    let mut driver = MockDriver::started(device);
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

#[test]
fn only_a_balloon_may_empty_a_page_also_one_that_is_written_to_later() {
    let acts = [
        Act::Put(BUFFERS, vec![7; 64]),
        Act::Reset,
        Act::Notify(0),
        Act::Put(BUFFERS + 16, vec![9]),
    ];
    let emptying = |device_type| Stray {
        device_type,
        at: BUFFERS,
        bytes: vec![0; CHUNK],
    };
    assert_eq!(played_with(emptying(VIRTIO_ID_BALLOON), &acts), Ok(()));
    assert!(played_with(emptying(1), &acts).is_err());
    let writing = Stray {
        bytes: vec![1],
        ..emptying(VIRTIO_ID_BALLOON)
    };
    assert!(played_with(writing, &acts).is_err());
}
