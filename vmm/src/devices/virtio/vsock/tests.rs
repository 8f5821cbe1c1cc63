//! The device and its queues, with a driver that takes queues away.

use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::mmio::register;
use super::super::mock::hostile::{any_acts, play};
use super::super::mock::{BUFFERS, MockDriver, WRITE};
use super::*;

const GUEST: u64 = 3;
const HOST: u64 = 2;
const STREAM: u16 = 1;
const OP_RST: u16 = 3;
const OP_RW: u16 = 5;

/// A packet for a connection there is not, which is answered with a reset.
fn stray_packet() -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(GUEST.to_le_bytes());
    packet.extend(HOST.to_le_bytes());
    packet.extend(1000_u32.to_le_bytes());
    packet.extend(2000_u32.to_le_bytes());
    packet.extend(0_u32.to_le_bytes());
    packet.extend(STREAM.to_le_bytes());
    packet.extend(OP_RW.to_le_bytes());
    packet.resize(PKT_HEADER_SIZE, 0);
    packet
}

fn driver() -> MockDriver {
    let (channel, _) = UnixStream::pair().unwrap();
    let driver = MockDriver::started(Vsock::new(GUEST, channel.into()).unwrap());
    driver.put(BUFFERS, &stray_packet());
    driver
}

fn send_stray_packet(driver: &mut MockDriver) {
    driver.submit(TX, &[(BUFFERS, PKT_HEADER_SIZE as u32, 0)]);
    assert_eq!(driver.take_used(TX), [(0, 0)]);
}

#[test]
fn a_stray_packet_is_answered_with_a_reset() {
    let mut driver = driver();
    let answer = BUFFERS + 0x1000;
    driver.submit(RX, &[(answer, 0x1000, WRITE)]);
    send_stray_packet(&mut driver);
    assert_eq!(driver.take_used(RX), [(0, PKT_HEADER_SIZE as u32)]);
    assert_eq!(driver.bytes(answer + 30, 2), OP_RST.to_le_bytes());
}

#[test]
fn answers_wait_when_the_driver_takes_their_queue_away() {
    let mut driver = driver();
    driver.write(register::QUEUE_SEL, RX as u32);
    driver.write(register::QUEUE_READY, 0);
    // As if there were buffers: the device must not go looking for them.
    driver.set_available(RX, 1);
    send_stray_packet(&mut driver);
    assert_eq!(driver.take_used(RX), []);
    assert!(!driver.needs_reset());
}

proptest! {
    /// Whatever a driver does, with packets in its buffers that are for somebody.
    #[test]
    fn no_driver_breaks_the_device(
        acts in any_acts(3),
        operations in proptest::collection::vec(0_u16..10, 8),
    ) {
        let mut driver = driver();
        for (operation, index) in operations.into_iter().zip(0_u64..) {
            let mut packet = stray_packet();
            packet[30..32].copy_from_slice(&operation.to_le_bytes());
            driver.put(BUFFERS + index * 0x40, &packet);
        }
        play(&mut driver, &acts)?;
    }
}
