//! The loopback interface and the names of the machine.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::failure::{Attempt, SetupError};

/// `/etc/hosts` of a machine that is called `hostname` and has this address, if it
/// has any.
pub fn hosts_file(hostname: &str, address: Option<IpAddr>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    // As Debian does: a name of its own for the machine without an address of
    // its own.
    let address = address.unwrap_or(IpAddr::from([127, 0, 1, 1]));
    if hostname != "localhost" {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    text
}

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1.
pub fn bring_up_loopback() -> Result<(), SetupError> {
    let attempted = || "cannot bring the loopback interface up".to_owned();
    let socket = match rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    ) {
        // A kernel without IPv4 has no interface to bring up.
        Err(Errno::AFNOSUPPORT) => return Ok(()),
        result => result.attempt(attempted)?,
    };
    // SAFETY: `ifreq` is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` with a terminated name and flags
    // (netdevice(7)); it outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).attempt(attempted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_name_has_an_address() {
        let text = hosts_file("box", None);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("127.0.1.1\tbox\n"));
        let text = hosts_file("box", Some(IpAddr::from([10, 0, 0, 2])));
        assert!(text.ends_with("\n10.0.0.2\tbox\n"));
    }

    #[test]
    fn a_machine_called_localhost_has_one_address() {
        assert!(!hosts_file("localhost", None).contains("127.0.1.1"));
    }
}
