//! A queue of a tap interface (Linux, Documentation/networking/tuntap.rst), by an
//! inherited descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// `struct virtio_net_hdr_v1` (virtio 1.3, section 5.1.6): in front of every
/// frame, in both directions, on the tap as in the queues.
pub const HEADER_BYTES: usize = 12;

/// What the tap shall do with frames for the guest: leave what the driver said it
/// does itself (`TUNSETOFFLOAD`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The driver completes checksums; without it, nothing else counts.
    pub checksum: bool,
    /// It takes TCP segments over IPv4 larger than the MTU.
    pub tso4: bool,
    /// Over IPv6.
    pub tso6: bool,
    /// It takes UDP segments over IPv4 larger than the MTU.
    pub uso4: bool,
    /// Over IPv6.
    pub uso6: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
        uso4: true,
        uso6: true,
    };

    /// Whether frames may be larger than the MTU.
    pub fn large_frames(self) -> bool {
        self.flags() & !libc::TUN_F_CSUM != 0
    }

    fn flags(self) -> libc::c_uint {
        if !self.checksum {
            return 0;
        }
        let flag = |wanted: bool, flag| if wanted { flag } else { 0 };
        let mut flags = libc::TUN_F_CSUM
            | flag(self.tso4, libc::TUN_F_TSO4)
            | flag(self.tso6, libc::TUN_F_TSO6);
        // Linux takes both or none (`set_offload` of the tun driver).
        if self.uso4 && self.uso6 {
            flags |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
        flags
    }
}

/// The name of an interface.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InterfaceName([u8; libc::IFNAMSIZ]);

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        f.write_str(&String::from_utf8_lossy(name))
    }
}

/// What `TUNGETIFF` says of a descriptor.
#[derive(Debug, Clone, Copy)]
pub struct TapIdentity {
    /// The interface it is a queue of.
    pub interface: InterfaceName,
    flags: libc::c_int,
}

impl TapIdentity {
    /// Asks. `None` if the descriptor is no queue of a tun or tap interface.
    pub fn of(fd: impl AsFd) -> Option<Self> {
        let fd = fd.as_fd();
        let identity = Self::ask(fd)?;
        // Linux says here by one bit that there are no packet information headers
        // (IFF_NO_PI) or that the queue has no socket filter (IFF_NOFILTER). With a
        // filter, which lets everything pass, the first is all that it can mean.
        let ambiguous = identity.flags & libc::IFF_NO_PI != 0;
        if !ambiguous || !attach_filter(fd) {
            return Some(identity);
        }
        let identity = Self::ask(fd);
        detach_filter(fd);
        identity
    }

    fn ask(fd: BorrowedFd<'_>) -> Option<Self> {
        // SAFETY: `ifreq` is plain data, for which all zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the number of TUNGETIFF is that of no other driver's call; it
        // writes an `ifreq`, which outlives the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        if result != 0 {
            return None;
        }
        // SAFETY: the call filled in the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Some(Self {
            interface: InterfaceName(request.ifr_name.map(|c| c as u8)),
            // As unsigned as they are in the kernel.
            flags: libc::c_int::from(flags as u16),
        })
    }

    /// Whether it carries Ethernet frames, each after a `virtio_net_hdr` and
    /// nothing else.
    pub fn carries_frames_after_headers(&self) -> bool {
        const WANTED: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        self.flags & (WANTED | libc::IFF_TUN) == WANTED
    }
}

/// Attaches a socket filter that lets everything pass; `false` if the kernel does
/// not take it, as for interfaces that are no taps.
fn attach_filter(fd: BorrowedFd<'_>) -> bool {
    let mut accept = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: u32::MAX,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut accept,
    };
    // SAFETY: TUNATTACHFILTER reads a `sock_fprog` and the one instruction that it
    // points to; both outlive the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNATTACHFILTER, &raw const program) };
    result == 0
}

fn detach_filter(fd: BorrowedFd<'_>) {
    // What cannot be detached goes on letting everything pass.
    // SAFETY: TUNDETACHFILTER ignores its argument.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNDETACHFILTER, 0) };
}

/// One queue of a tap interface, non-blocking.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Transfer {
    /// It was moved, and had this many bytes with its header.
    Frame(usize),
    /// It was lost, as frames may be: the interface is down, or the header is
    /// nonsense.
    Dropped,
    /// There is none now.
    Nothing,
}

/// The interface is gone.
#[derive(Debug)]
pub struct Gone(pub io::Error);

impl Tap {
    /// Makes a queue ready for use: non-blocking, headers of [`HEADER_BYTES`], no
    /// offloads. Also says whether the kernel knows UDP segmentation.
    pub fn new(fd: OwnedFd) -> io::Result<(Self, bool)> {
        use rustix::fs::OFlags;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        let size = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int, which outlives the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let tap = Self { fd };
        let segments_udp = tap.set_offloads(Offloads::ALL).is_ok();
        tap.set_offloads(Offloads::default())?;
        Ok((tap, segments_udp))
    }

    /// Any descriptor that carries a frame for each read and write, for tests.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn pretend(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Lets the interface give frames to this queue, or not (`TUNSETQUEUE`).
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        // SAFETY: `ifreq` is plain data, for which all zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = match attached {
            true => libc::IFF_ATTACH_QUEUE as libc::c_short,
            false => libc::IFF_DETACH_QUEUE as libc::c_short,
        };
        // SAFETY: TUNSETQUEUE reads an `ifreq`, which outlives the call.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sets what frames for the guest may be like, for the whole interface.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = libc::c_ulong::from(offloads.flags());
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Makes sense of what a write of a frame came to. The kernel refuses a malformed
/// header with `EINVAL`; `EIO` says that the interface is down.
pub fn sent(result: io::Result<usize>) -> Result<Transfer, Gone> {
    match result {
        Ok(bytes) => Ok(Transfer::Frame(bytes)),
        Err(error) if is_gone(&error) => Err(Gone(error)),
        Err(_) => Ok(Transfer::Dropped),
    }
}

/// Makes sense of what a read of a frame came to.
pub fn received(result: io::Result<usize>) -> Result<Transfer, Gone> {
    match result {
        Ok(0) => Err(Gone(io::ErrorKind::UnexpectedEof.into())),
        Ok(bytes) => Ok(Transfer::Frame(bytes)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => Ok(Transfer::Nothing),
            // The frame is lost after all of these.
            None | Some(Errno::INTR | Errno::FAULT | Errno::INVAL) => Ok(Transfer::Dropped),
            // What goes on without end must not be read without end.
            Some(_) => Err(Gone(error)),
        },
    }
}

/// `EBADFD` after the interface was deleted; the others to be sure.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BADFD | Errno::BADF | Errno::NODEV | Errno::NXIO | Errno::PIPE)
    )
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
