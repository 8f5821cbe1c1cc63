//! What the device offers, and what the driver's answer means.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::MacAddress;
use super::tap::Offloads;

/// Offsets into `struct virtio_net_config`.
const CONFIG_MAC: usize = 0;
/// The link's status; its lower byte has all bits there are.
pub const CONFIG_STATUS: usize = 6;
const CONFIG_MAX_PAIRS: usize = 8;
const CONFIG_MTU: usize = 10;
/// The configuration space, as far as fields are offered.
pub const CONFIG_BYTES: usize = 12;

/// Whether the feature number `bit` is among `features`.
pub const fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// The configuration space of a NIC whose link is up.
pub fn config_space(mac: &MacAddress, mtu: Option<u16>, pairs: usize) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    config[CONFIG_MAC..][..6].copy_from_slice(mac);
    config[CONFIG_STATUS] = VIRTIO_NET_S_LINK_UP as u8;
    // At most MAX_PAIRS.
    config[CONFIG_MAX_PAIRS] = pairs as u8;
    config[CONFIG_MTU..][..2].copy_from_slice(&mtu.unwrap_or_default().to_le_bytes());
    config
}

/// The feature bits of a NIC.
pub fn offered(tells_mtu: bool, segments_udp: bool, pairs: usize) -> u64 {
    let mut bits = vec![
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
    ];
    if tells_mtu {
        bits.push(VIRTIO_NET_F_MTU);
    }
    if segments_udp {
        bits.extend([
            VIRTIO_NET_F_HOST_USO,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ]);
    }
    if pairs > 1 {
        bits.extend([VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ]);
    }
    bits.into_iter().fold(0, |all, bit| all | 1 << bit)
}

/// What a driver that acknowledged `features` takes.
pub fn offloads(features: u64) -> Offloads {
    Offloads {
        checksum: has(features, VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(features, VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(features, VIRTIO_NET_F_GUEST_TSO6),
        uso4: has(features, VIRTIO_NET_F_GUEST_USO4),
        uso6: has(features, VIRTIO_NET_F_GUEST_USO6),
    }
}
