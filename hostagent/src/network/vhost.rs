//! Opens vhost-net, the part of the host's kernel that moves frames between a guest's
//! queues and a tap.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

const DEVICE: &str = "/dev/vhost-net";

/// vhost-net cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {DEVICE} (`modprobe vhost_net` loads its driver); vhost=off does without")]
pub struct VhostError(#[source] io::Error);

/// Opens it once for each of `pairs` pairs of queues.
pub fn open_vhost(pairs: usize) -> Result<Vec<OwnedFd>, VhostError> {
    let open = |_| File::options().read(true).write(true).open(DEVICE);
    let opened = (0..pairs).map(open).map(|file| file.map(OwnedFd::from));
    opened.collect::<io::Result<_>>().map_err(VhostError)
}
