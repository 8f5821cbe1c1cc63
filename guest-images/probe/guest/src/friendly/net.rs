//! virtio-net.

use alloc::vec::Vec;

use virtio_drivers::device::net::{TxBuffer, VirtIONet};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::scenarios::Context;
use crate::virtio::{self, Identity, Window};
use crate::{interrupts, mmio, say};

const QUEUE_SIZE: usize = 16;
const BUFFER_BYTES: usize = 2048;
/// Offset of the link's status: the configuration space begins at 0x100, the address
/// comes first.
const LINK_STATUS: usize = 0x106;
const LINK_UP: u16 = 1;
/// A type for experiments (IEEE 802, local experimental EtherType 1).
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// A NIC.
pub type Nic = VirtIONet<Identity, MmioTransport<'static>, QUEUE_SIZE>;

/// The first NIC's registers.
pub fn window() -> Window {
    virtio::find(DeviceType::Network, 0)
}

/// A NIC, reset and started.
pub fn start(window: Window) -> Nic {
    VirtIONet::new(virtio::transport(window), BUFFER_BYTES).expect("the NIC starts")
}

/// Halts until there is a frame; returns it.
fn receive(nic: &mut Nic, window: Window) -> Vec<u8> {
    loop {
        let seen = interrupts::count(window.gsi);
        // Before it looks: what comes afterwards raises another.
        nic.ack_interrupt();
        if let Ok(buffer) = nic.receive() {
            let frame = buffer.packet().to_vec();
            nic.recycle_rx_buffer(buffer).expect("a free descriptor");
            return frame;
        }
        interrupts::wait_for_more(window.gsi, seen);
    }
}

/// Sends back each frame to where it came from, so many.
pub fn echo(context: &Context) {
    let frames = context.arguments.number("frames");
    let window = window();
    interrupts::connect(window.gsi);
    let mut nic = start(window);
    let own = nic.mac_address();
    say!("ready");
    for _ in 0..frames {
        let mut frame = receive(&mut nic, window);
        let (to, rest) = frame.split_at_mut(6);
        to.copy_from_slice(&rest[..6]);
        rest[..6].copy_from_slice(&own);
        nic.send(TxBuffer::from(&frame)).expect("a frame is sent");
    }
    say!("{frames} frames");
}

/// Sends one frame to all, with `text` in it.
pub fn announce(text: &str) {
    let mut nic = start(window());
    let mut frame = Vec::from([0xff; 6]);
    frame.extend(nic.mac_address());
    frame.extend(EXPERIMENTAL);
    frame.extend(text.as_bytes());
    frame.resize(60, 0);
    nic.send(TxBuffer::from(&frame)).expect("a frame is sent");
}

/// Halts until the link is down, and goes on sending.
pub fn link_down(_: &Context) {
    let window = window();
    interrupts::connect(window.gsi);
    let mut nic = start(window);
    let status = || mmio::read_u16(window.address + LINK_STATUS);
    assert_eq!(status(), LINK_UP);
    say!("up");
    loop {
        let seen = interrupts::count(window.gsi);
        nic.ack_interrupt();
        if status() != LINK_UP {
            break;
        }
        interrupts::wait_for_more(window.gsi, seen);
    }
    for _ in 0..100 {
        nic.send(TxBuffer::from(&[0; 60])).expect("a frame is lost");
    }
    say!("down");
}
