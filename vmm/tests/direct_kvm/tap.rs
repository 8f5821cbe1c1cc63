//! A tap interface in a network namespace of its own, and the host's end of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A frame not seen by then never comes.
const PATIENCE: Duration = Duration::from_secs(20);

const ANY_PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// A tap interface that is up, and goes with its namespace when all is dropped.
pub struct TapInterface {
    name: &'static str,
    /// Its queues.
    pub queues: Vec<OwnedFd>,
    /// A packet socket on it: what is sent here, the guest receives.
    socket: OwnedFd,
    /// A socket of the namespace, for ioctls.
    namespace: OwnedFd,
}

/// `None`, and a line that says why, where there is no `/dev/net/tun`, or none for
/// this user.
pub fn interface(queues: usize, flags: libc::c_int) -> Option<TapInterface> {
    named("tap0", queues, flags)
}

/// An interface with a name of its own.
pub fn named(name: &'static str, queues: usize, flags: libc::c_int) -> Option<TapInterface> {
    // A thread has the namespace, so that nobody else is moved into it.
    let made = std::thread::spawn(move || TapInterface::new(name, queues, flags)).join();
    match made.expect("the thread does not panic") {
        Ok(interface) => Some(interface),
        Err(error) => {
            let test = std::thread::current();
            let test = test.name().unwrap_or("a test");
            let line = format!("skipped: {test}: cannot make a tap interface: {error}\n");
            // Past the test harness, in one piece.
            let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
            None
        }
    }
}

/// What a NIC of a microVM needs.
pub fn good_flags(queues: usize) -> libc::c_int {
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn open_socket(domain: i32, kind: i32, protocol: u16) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let fd = checked(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol.into()) })?;
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl TapInterface {
    fn new(name: &'static str, queues: usize, flags: libc::c_int) -> io::Result<Self> {
        // SAFETY: moves the calling thread into a new network namespace.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        let queues = (0..queues)
            .map(|_| open_queue(name, flags))
            .collect::<io::Result<Vec<_>>>()?;
        let namespace = open_socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        // Else the host's IPv6 would send frames of its own.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        let socket = open_socket(libc::AF_PACKET, libc::SOCK_RAW, ANY_PROTOCOL)?;
        let mut this = Self {
            name,
            queues,
            socket,
            namespace,
        };
        this.set_up(true)?;
        this.bind()?;
        // For all that a guest sends before anybody looks.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&this.socket, 64 << 20)?;
        Ok(this)
    }

    fn bind(&mut self) -> io::Result<()> {
        let mut request = request(self.name);
        // SAFETY: SIOCGIFINDEX reads the name and writes the index of an `ifreq`.
        checked(unsafe {
            libc::ioctl(
                self.namespace.as_raw_fd(),
                libc::SIOCGIFINDEX,
                &raw mut request,
            )
        })?;
        // SAFETY: plain data, for which all zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ANY_PROTOCOL;
        // SAFETY: the call filled in the index.
        address.sll_ifindex = unsafe { request.ifr_ifru.ifru_ifindex };
        // SAFETY: the address is as long as is said.
        checked(unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        })?;
        Ok(())
    }

    /// Takes the interface up or down.
    pub fn set_up(&self, up: bool) -> io::Result<()> {
        let mut request = request(self.name);
        request.ifr_ifru.ifru_flags = if up { libc::IFF_UP as i16 } else { 0 };
        // SAFETY: SIOCSIFFLAGS reads an `ifreq`.
        checked(unsafe {
            libc::ioctl(
                self.namespace.as_raw_fd(),
                libc::SIOCSIFFLAGS,
                &raw const request,
            )
        })?;
        Ok(())
    }

    /// Sets the largest packet.
    pub fn set_mtu(&self, mtu: i32) {
        let mut request = request(self.name);
        request.ifr_ifru.ifru_mtu = mtu;
        // SAFETY: SIOCSIFMTU reads an `ifreq`.
        checked(unsafe {
            libc::ioctl(
                self.namespace.as_raw_fd(),
                libc::SIOCSIFMTU,
                &raw const request,
            )
        })
        .unwrap();
    }

    /// Deletes the interface by a netlink message (rtnetlink(7), `RTM_DELLINK`).
    pub fn delete(&self) {
        let (namespace, name) = (self.namespace.try_clone().unwrap(), self.name);
        std::thread::spawn(move || {
            // SIOCGSKNS gives the namespace of a socket.
            const SIOCGSKNS: libc::Ioctl = 0x894c;
            // SAFETY: no pointers; the result is a descriptor.
            let fd = checked(unsafe { libc::ioctl(namespace.as_raw_fd(), SIOCGSKNS) }).unwrap();
            // SAFETY: just opened, owned by nobody else.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: moves the calling thread, which ends soon.
            checked(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) }).unwrap();
            let status = std::process::Command::new("ip")
                .args(["link", "delete", name])
                .status()
                .expect("iproute2 is installed");
            assert!(status.success());
        })
        .join()
        .unwrap();
    }

    /// Sends a frame to the guest.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.socket, frame)?;
        Ok(())
    }

    /// Frames sent here, and those received, have a `virtio_net_hdr` of ten bytes
    /// before them from now on (packet(7), `PACKET_VNET_HDR`).
    #[allow(dead_code, reason = "only the unit tests that share this file use it")]
    pub fn use_headers(&self) {
        let on: libc::c_int = 1;
        // SAFETY: the option reads an int.
        checked(unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as u32,
            )
        })
        .unwrap();
    }

    /// Waits for the next frame from the guest: those that this socket has sent
    /// itself do not come back to it.
    pub fn receive(&self) -> Vec<u8> {
        let mut frame = vec![0; 70_000];
        loop {
            let mut watched = [PollFd::new(&self.socket, PollFlags::IN)];
            let patience = Timespec::try_from(PATIENCE).unwrap();
            assert_eq!(poll(&mut watched, Some(&patience)), Ok(1), "no frame comes");
            match rustix::io::read(&self.socket, &mut frame) {
                Ok(length) => {
                    frame.truncate(length);
                    return frame;
                }
                // It was, at some time before.
                Err(rustix::io::Errno::NETDOWN) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }
}

/// One queue of the interface `name` in the namespace of the calling thread.
fn open_queue(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which outlives the call.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(tun.into())
}
