//! Opens the queues of a tap interface (Linux, Documentation/networking/tuntap.rst).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

const DEVICE: &str = "/dev/net/tun";
/// As many queues as a VMM takes, and vCPUs have use for.
const MAX_QUEUES: u32 = 8;

/// Why a tap interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No device to ask for taps.
    #[error("cannot open {DEVICE}, which makes tap interfaces (`modprobe tun` loads its driver)")]
    Device(#[source] io::Error),
    /// Not allowed.
    #[error(
        "no permission to use the tap interface {name}; as root: ip tuntap add dev {name} mode tap vnet_hdr user USER"
    )]
    Permission {
        /// The interface.
        name: String,
        /// What the system reported.
        source: io::Error,
    },
    /// Somebody has it.
    #[error("the tap interface {name} is in use by another process")]
    Busy {
        /// The interface.
        name: String,
        /// What the system reported.
        source: io::Error,
    },
    /// It is something else, or the system refused.
    #[error("cannot use {name} as a tap interface; is it an interface of another kind?")]
    Refused {
        /// The interface.
        name: String,
        /// What the system reported.
        source: io::Error,
    },
    /// It was made and cannot be used.
    #[error("cannot bring the tap interface {name} up")]
    Up {
        /// The interface.
        name: String,
        /// What the system reported.
        source: io::Error,
    },
}

/// Opens queues of the tap interface `name`: one for each vCPU, as far as the
/// interface has several. An interface that does not exist is made, and brought up;
/// it goes when the descriptors do.
pub fn open_tap(name: &str, vcpus: u32) -> Result<Vec<OwnedFd>, TapError> {
    let existed = index_of(name).is_some();
    let wanted = vcpus.clamp(1, MAX_QUEUES);
    let several = wanted > 1;
    // An interface has been made for one queue or for several, and only takes those
    // who say which.
    let first = match attach(name, several) {
        Err(error) if is(&error, Errno::INVAL) => attach(name, !several).map(|fd| (fd, !several)),
        result => result.map(|fd| (fd, several)),
    };
    let explain = |source: io::Error| {
        let name = name.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => TapError::Device(source),
            Some(Errno::PERM | Errno::ACCESS) => TapError::Permission { name, source },
            Some(Errno::BUSY) => TapError::Busy { name, source },
            _ => TapError::Refused { name, source },
        }
    };
    let (first, several) = first.map_err(explain)?;
    let mut queues = vec![first];
    if several {
        for _ in 1..wanted {
            queues.push(attach(name, true).map_err(explain)?);
        }
    }
    if !existed {
        bring_up(name).map_err(|source| TapError::Up {
            name: name.to_owned(),
            source,
        })?;
    }
    Ok(queues)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: names are checked where they come from.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from as libc::c_char;
    }
    request
}

/// One more queue of the interface, which is made if it does not exist.
fn attach(name: &str, several: bool) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    match result {
        0 => Ok(device.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

fn index_of(name: &str) -> Option<u32> {
    rustix::net::netdevice::name_to_index(socket().ok()?, name).ok()
}

fn bring_up(name: &str) -> io::Result<()> {
    let socket = socket()?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` (netdevice(7)), which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs `test` in a network namespace of its own, where there may be one.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let thread = std::thread::spawn(move || {
            let flags = rustix::thread::UnshareFlags::NEWNET;
            // SAFETY: only the network of this thread, which shares no memory by it.
            let unshared = unsafe { rustix::thread::unshare_unsafe(flags) };
            if unshared.is_err() || File::open(DEVICE).is_err() {
                eprintln!("skipped: {name}: no network namespace or no {DEVICE}");
                return;
            }
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

    /// Waits until the interface is gone. What another test starts has all of this
    /// process's descriptors for a moment, until it has become another program.
    fn gone(name: &str) {
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while index_of(name).is_some() {
            assert!(std::time::Instant::now() < patience, "{name} stays");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_interface_that_does_not_exist_is_made_for_the_time_of_the_run() {
        in_namespace(|| {
            let queues = open_tap("new0", 4).unwrap();
            assert_eq!(queues.len(), 4);
            let shown = ip("-o link show new0");
            assert!(shown.contains("UP"), "{shown}");
            drop(queues);
            gone("new0");
            assert_eq!(open_tap("new0", 1).unwrap().len(), 1);
            gone("new0");
            assert_eq!(open_tap("new0", 32).unwrap().len(), 8);
        });
    }

    #[test]
    fn an_interface_that_exists_is_used_as_it_was_made() {
        in_namespace(|| {
            ip("tuntap add dev one0 mode tap vnet_hdr");
            ip("tuntap add dev many0 mode tap vnet_hdr multi_queue");
            assert_eq!(open_tap("one0", 4).unwrap().len(), 1);
            assert_eq!(open_tap("many0", 4).unwrap().len(), 4);
            assert_eq!(open_tap("many0", 1).unwrap().len(), 1);
            // Left as the user has it.
            assert!(!ip("-o link show one0").contains("UP"));
            assert!(index_of("one0").is_some());
        });
    }

    #[test]
    fn interfaces_in_use_and_of_other_kinds_are_refused_by_name() {
        in_namespace(|| {
            let _held = open_tap("held0", 1).unwrap();
            let busy = open_tap("held0", 1).unwrap_err();
            assert!(matches!(busy, TapError::Busy { .. }), "{busy}");
            let other = open_tap("lo", 1).unwrap_err();
            assert!(matches!(other, TapError::Refused { .. }), "{other}");
            assert!(other.to_string().contains("lo"));
        });
    }
}
