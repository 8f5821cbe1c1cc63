//! The system around the workload, as a container expects it: the kernel's file
//! systems, `/dev`, cgroup v2, the network's names and a few kernel settings.
//!
//! The boundary is the machine, not these mounts, so nothing is masked or
//! read-only, and root keeps all capabilities: what runs here may mount, trace
//! and load as root of a machine does.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use guest_protocol::Workload;
use rustix::mount::MountFlags;

use crate::cgroup;
use crate::console;
use crate::failure::{Attempt, SetupError, chain};
use crate::netlink;
use crate::network;
use crate::root::{make_directory, make_mount_point};

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
    /// A kernel may be built without it, and most workloads do not miss it.
    optional: bool,
}

const NO_SUID_DEV_EXEC: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In order: what is below another comes first.
const MOUNTS: [Mount; 7] = [
    Mount {
        kind: "proc",
        target: "/proc",
        flags: NO_SUID_DEV_EXEC,
        options: c"",
        optional: false,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: NO_SUID_DEV_EXEC,
        options: c"",
        optional: false,
    },
    // The kernel's own /dev has every node a container knows, with the modes
    // it expects, and those of the machine's disks for root alone. Not noexec:
    // programs map /dev/zero to execute from it.
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID,
        options: c"mode=0755",
        optional: false,
    },
    // Group 5 is tty in every distribution; the OCI runtime specification's
    // default mounts have the same options.
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"newinstance,ptmxmode=0666,mode=0620,gid=5",
        optional: false,
    },
    // Docker's 64 MiB are a frequent complaint; here the limit is the machine's
    // memory, and tmpfs allows half of it by default.
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: NO_SUID_DEV_EXEC,
        options: c"mode=1777",
        optional: false,
    },
    Mount {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: NO_SUID_DEV_EXEC,
        options: c"",
        optional: true,
    },
    Mount {
        kind: "cgroup2",
        target: cgroup::ROOT,
        flags: NO_SUID_DEV_EXEC,
        options: c"nsdelegate,memory_recursiveprot",
        optional: true,
    },
];

/// `/dev` links that programs rely on (OCI runtime specification, Linux,
/// "Default Devices").
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Kernel settings under `/proc/sys`.
const SETTINGS: [(&str, &str); 3] = [
    // As Docker sets them: every user may listen on low ports and use ping.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // As distributions raise it: databases and JVMs map more than 65530 areas.
    ("vm/max_map_count", "1048576"),
];

/// Mounts what every workload finds, in the root file system just entered.
pub fn mount_all() -> Result<(), SetupError> {
    for mount in &MOUNTS {
        let result = mount_one(mount);
        match result {
            Err(error) if mount.optional => console::say(&chain(&error)),
            result => result?,
        }
    }
    for (original, link) in DEVICE_LINKS {
        // devtmpfs is one for the whole machine and may have them already.
        if fs::symlink_metadata(link).is_err() {
            symlink(original, link).attempt(|| format!("cannot make the link {link}"))?;
        }
    }
    for (name, value) in SETTINGS {
        // A kernel without the feature has no such setting.
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    Ok(())
}

fn mount_one(mount: &Mount) -> Result<(), SetupError> {
    let Mount { kind, target, .. } = mount;
    // sysfs has the cgroup mount point, and no way to make one.
    if *target != cgroup::ROOT {
        make_mount_point(target)?;
    }
    rustix::mount::mount(*kind, *target, *kind, mount.flags, mount.options)
        .attempt(|| format!("cannot mount {kind} on {target}"))
}

/// What the kernel calls the machine's first NIC.
const NIC: &str = "eth0";

/// Gives the machine the name, the files under `/etc` and the interfaces that the
/// workload expects.
pub fn configure(workload: &Workload) -> Result<(), SetupError> {
    let hostname = workload.hostname.as_str();
    rustix::system::sethostname(hostname.as_bytes())
        .attempt(|| format!("cannot set the host name to {hostname:?}"))?;
    replace_file("/etc/hostname", &format!("{hostname}\n"))?;
    let hosts = workload.hosts_file.clone();
    let address = workload.network.iter().flat_map(|n| &n.addresses).next();
    let hosts =
        hosts.unwrap_or_else(|| network::hosts_file(hostname, address.map(|address| address.ip)));
    replace_file("/etc/hosts", &hosts)?;
    if let Some(text) = &workload.resolv_conf {
        replace_file("/etc/resolv.conf", text)?;
    }
    for mount in &workload.mounts {
        mount_directory(mount)?;
    }
    network::bring_up_loopback()?;
    match &workload.network {
        Some(network) => netlink::set_up(NIC, network),
        None => Ok(()),
    }
}

/// Mounts a directory of the host's. Links on the way to it are those of the image, as
/// the workload would follow them.
fn mount_directory(mount: &guest_protocol::Mount) -> Result<(), SetupError> {
    let guest_protocol::Mount {
        tag,
        target,
        read_only,
    } = mount;
    make_directory(target)?;
    let flags = match read_only {
        true => MountFlags::RDONLY,
        false => MountFlags::empty(),
    };
    rustix::mount::mount(tag.as_str(), target.as_str(), "virtiofs", flags, None)
        .attempt(|| format!("cannot mount the volume {tag} on {target} (virtiofs)"))
}

/// Writes a file in the place of whatever has its name. A link is replaced, not
/// followed: its target may belong to something else.
fn replace_file(path: &str, contents: &str) -> Result<(), SetupError> {
    let attempted = || format!("cannot write {path}");
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent).attempt(attempted)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).attempt(attempted);
        }
        _ => {}
    }
    fs::write(path, contents).attempt(attempted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("etc/resolv.conf");
        fs::create_dir(link.parent().unwrap()).unwrap();
        fs::write(&target, "theirs").unwrap();
        symlink(&target, &link).unwrap();
        replace_file(link.to_str().unwrap(), "ours").unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "ours");
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    }

    #[test]
    fn a_file_is_written_where_its_directory_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/hosts");
        replace_file(path.to_str().unwrap(), "text").unwrap();
        replace_file(path.to_str().unwrap(), "again").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "again");
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = replace_file(directory.path().to_str().unwrap(), "").unwrap_err();
        assert!(chain(&error).contains("cannot write"), "{error}");
    }
}
