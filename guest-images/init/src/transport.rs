//! How the init reaches its host.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::HOST_CID;
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A way to connect to the host's ports.
pub trait Transport {
    /// A connected stream socket to `port` of the host.
    fn connect(&self, port: u32) -> io::Result<OwnedFd>;
}

/// virtio-vsock.
#[derive(Debug, Default)]
pub struct Vsock;

/// How long the host may take to answer. The kernel's own limit of two seconds
/// is short for a host that is starting many machines at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// `linux/vm_sockets.h`; takes a `timeval`.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// How long the device may take to appear.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

impl Transport for Vsock {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let deadline = Instant::now() + DEVICE_TIMEOUT;
        loop {
            match connect_once(port) {
                // The driver has not bound to the device yet.
                Err(Errno::NODEV) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return Ok(result?),
            }
        }
    }
}

fn connect_once(port: u32) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_connect_timeout(&socket)?;
    rustix::net::connect(
        &socket,
        &VsockAddress {
            cid: HOST_CID,
            port,
        },
    )?;
    Ok(socket)
}

fn set_connect_timeout(socket: &OwnedFd) -> Result<(), Errno> {
    let timeout = libc::timeval {
        tv_sec: CONNECT_TIMEOUT.as_secs() as libc::time_t,
        tv_usec: 0,
    };
    // SAFETY: the option takes a `timeval` (vsock(7)), which the pointer and
    // length describe and which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

struct VsockAddress {
    cid: u32,
    port: u32,
}

// SAFETY: `with_sockaddr` passes a pointer to a whole `sockaddr_vm` (vsock(7))
// and its size; it lives on the stack until `f` returns.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        // SAFETY: all zeroes are a valid `sockaddr_vm`; its reserved fields
        // must be zero.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        f(
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as SocketAddrLen,
        )
    }
}
