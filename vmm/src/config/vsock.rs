//! The vsock device.

use std::os::fd::OwnedFd;

use super::descriptor::seqpacket;
use super::error::{ConfigError, in_range};
use crate::descriptors::Descriptors;
use crate::spec::VsockSpec;

/// Context ids 0 to 2 are reserved (vsock(7)); 2³² - 1 means "any".
const GUEST_CIDS: std::ops::Range<u64> = 3..u32::MAX as u64;

/// An address and a way out.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's context id.
    pub guest_cid: u64,
    /// A `SOCK_SEQPACKET` socket.
    pub channel: OwnedFd,
}

/// Validates the vsock device.
pub fn vsock(spec: VsockSpec, fds: &mut Descriptors) -> Result<VsockConfig, ConfigError> {
    let guest_cid = in_range(
        "vsock.guest_cid",
        spec.guest_cid,
        GUEST_CIDS,
        format!("{} to {}", GUEST_CIDS.start, GUEST_CIDS.end - 1),
    )?;
    let channel = seqpacket(spec.channel, "vsock.channel", fds)?;
    Ok(VsockConfig { guest_cid, channel })
}
