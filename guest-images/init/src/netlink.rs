//! Sets an interface up by rtnetlink(7): link, addresses, default routes.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use guest_protocol::{Network, NetworkAddress};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::failure::{Attempt, SetupError};

/// Longer than any acknowledgement, which holds the request it is for.
const REPLY_BYTES: usize = 512;

/// Brings `interface` up and gives it its addresses and default routes.
pub fn set_up(interface: &str, network: &Network) -> Result<(), SetupError> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE
        None,
    )
    .attempt(|| "cannot open a netlink socket".to_owned())?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface)
        .attempt(|| format!("the guest has no network interface {interface}"))?;
    link_up(index)
        .ask(&socket)
        .attempt(|| format!("cannot bring the network interface {interface} up"))?;
    for address in &network.addresses {
        let NetworkAddress {
            ip, prefix_length, ..
        } = address;
        new_address(index, address)
            .ask(&socket)
            .attempt(|| format!("cannot give {interface} the address {ip}/{prefix_length}"))?;
        if let Some(gateway) = address.gateway {
            default_route(index, gateway)
                .ask(&socket)
                .attempt(|| format!("cannot set the default route to {gateway}"))?;
        }
    }
    Ok(())
}

/// `struct ifinfomsg`.
fn link_up(index: u32) -> Request {
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let mut request = Request::new(libc::RTM_NEWLINK, 0);
    request.push(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
    request.push(&index.to_ne_bytes());
    // The flag, and which flags to change.
    request.push(&up);
    request.push(&up);
    request
}

/// `struct ifaddrmsg`.
fn new_address(index: u32, address: &NetworkAddress) -> Request {
    let mut request = Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    // The host gives this guest its address; to ask others first, whether they have
    // it, would make the first connections wait a second (IPv6).
    let flags = libc::IFA_F_NODAD as u8;
    request.push(&[family(address.ip), address.prefix_length, flags, 0]);
    request.push(&index.to_ne_bytes());
    request.push_attribute(libc::IFA_LOCAL, &octets(address.ip));
    request.push_attribute(libc::IFA_ADDRESS, &octets(address.ip));
    if let (IpAddr::V4(ip), 1..=30) = (address.ip, address.prefix_length) {
        let host_bits = u32::MAX >> address.prefix_length;
        let broadcast = u32::from(ip) | host_bits;
        request.push_attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
    }
    request
}

/// `struct rtmsg`.
fn default_route(index: u32, gateway: IpAddr) -> Request {
    let mut request = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    request.push(&[
        family(gateway),
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ]);
    request.push(&0_u32.to_ne_bytes());
    request.push_attribute(libc::RTA_GATEWAY, &octets(gateway));
    request.push_attribute(libc::RTA_OIF, &index.to_ne_bytes());
    request
}

fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A message (netlink(7)) that asks for an acknowledgement.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence number and port: one request is under way, by one socket.
        bytes.extend([0; 8]);
        Self(bytes)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Adds a `struct rtattr` and its value; all values here are of whole words.
    fn push_attribute(&mut self, kind: u16, value: &[u8]) {
        // At most 16 bytes.
        let length = 4 + value.len() as u16;
        self.push(&length.to_ne_bytes());
        self.push(&kind.to_ne_bytes());
        self.push(value);
    }

    /// Sends it and waits until it is done.
    fn ask(mut self, socket: &OwnedFd) -> io::Result<()> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        rustix::net::send(socket, &self.0, SendFlags::empty())?;
        let mut reply = [0; REPLY_BYTES];
        let (length, _) = rustix::net::recv(socket, &mut reply[..], RecvFlags::empty())?;
        // `struct nlmsghdr`, then in `struct nlmsgerr` the negated error, 0 for none.
        match reply[..length.min(REPLY_BYTES)].get(16..20) {
            Some(&[a, b, c, d]) => match i32::from_ne_bytes([a, b, c, d]) {
                0 => Ok(()),
                error => Err(Errno::from_raw_os_error(error.saturating_neg()).into()),
            },
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs `test` where there is an interface `eth0` and no other machine.
    fn with_eth0(test: impl FnOnce() + Send + 'static) {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let thread = std::thread::spawn(move || {
            let flags = rustix::thread::UnshareFlags::NEWNET;
            // SAFETY: only the network of this thread, which shares no memory by it.
            if unsafe { rustix::thread::unshare_unsafe(flags) }.is_err() {
                eprintln!("skipped: {name}: no network namespace");
                return;
            }
            ip("tuntap add dev eth0 mode tap");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .expect("iproute2 is installed");
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn address(ip: &str, prefix_length: u8, gateway: Option<&str>) -> NetworkAddress {
        NetworkAddress {
            ip: ip.parse().unwrap(),
            prefix_length,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        }
    }

    #[test]
    fn link_addresses_and_routes_are_as_was_asked() {
        with_eth0(|| {
            let addresses = vec![
                address("10.1.2.3", 20, Some("10.1.0.1")),
                address("fd00::3", 64, Some("fe80::1")),
            ];
            set_up("eth0", &Network { addresses }).unwrap();
            let shown = ip("address show dev eth0");
            for part in ["UP", "inet 10.1.2.3/20 brd 10.1.15.255", "inet6 fd00::3/64"] {
                assert!(shown.contains(part), "{part}: {shown}");
            }
            assert!(ip("route").contains("default via 10.1.0.1 dev eth0"));
            assert!(ip("-6 route").contains("default via fe80::1 dev eth0"));
        });
    }

    #[test]
    fn without_addresses_the_link_comes_up() {
        with_eth0(|| {
            let addresses = Vec::new();
            set_up("eth0", &Network { addresses }).unwrap();
            assert!(ip("link show dev eth0").contains("UP"));
        });
    }

    #[test]
    fn what_the_kernel_refuses_is_said() {
        with_eth0(|| {
            let addresses = vec![address("10.1.2.3", 24, Some("192.168.0.1"))];
            let network = Network { addresses };
            let error = crate::failure::chain(&set_up("eth0", &network).unwrap_err());
            assert!(error.contains("192.168.0.1"), "{error}");
            assert!(error.contains("unreachable"), "{error}");
            let error = crate::failure::chain(&set_up("eth7", &network).unwrap_err());
            assert!(error.contains("no network interface eth7"), "{error}");
        });
    }
}
