//! virtio-rng.

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

use crate::say;
use crate::scenarios::Context;
use crate::virtio::{self, Identity};

/// Asks twice for random bytes and checks that they are not the same.
pub fn check() {
    let window = virtio::find(DeviceType::EntropySource, 0);
    let mut device =
        VirtIORng::<Identity, _>::new(virtio::transport(window)).expect("the device starts");
    let (mut first, mut second) = ([0; 64], [0; 64]);
    for bytes in [&mut first, &mut second] {
        let length = device.request_entropy(bytes).expect("random bytes");
        assert_eq!(length, 64);
    }
    assert_ne!(first, second);
    assert_ne!(first, [0; 64]);
}

/// The scenario.
pub fn differs(_: &Context) {
    check();
    say!("random");
}
