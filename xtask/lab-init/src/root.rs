//! From the initramfs to the machine's own file system.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::net::{AddressFamily, SendFlags, SocketType, netlink, sendto, socket};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit};

use crate::protocol::{Command, MODULES_DIRECTORY, ROOT_TAG, SCRATCH_DIRECTORY, SCRATCH_SERIAL};

/// Where the new root is put together. The initramfs's own root cannot be
/// unmounted; it stays beneath.
const LOWER: &str = "/lower";
const WRITABLE: &str = "/writable";
const ROOT: &str = "/root";

/// Mounts what the kernel itself provides.
pub fn mount_kernel_filesystems() -> anyhow::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_new(kind, kind, Path::new(target), MountFlags::empty(), None)?;
    }
    Ok(())
}

/// Loads the modules of the initramfs in the order of their file names.
pub fn load_modules() -> anyhow::Result<()> {
    let mut modules: Vec<PathBuf> = fs::read_dir(MODULES_DIRECTORY)
        .with_context(|| format!("reading {MODULES_DIRECTORY}"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    modules.sort();
    for path in modules {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("loading {}", path.display()));
            }
        }
    }
    Ok(())
}

/// Makes the machine's file system, under a writable overlay, the root.
pub fn enter(request: &Command) -> anyhow::Result<()> {
    let no_flags = MountFlags::empty();
    mount_new(
        "virtiofs",
        ROOT_TAG,
        Path::new(LOWER),
        MountFlags::RDONLY,
        None,
    )
    .context("sharing the machine's file system")?;
    mount_new(
        "tmpfs",
        "tmpfs",
        Path::new(WRITABLE),
        no_flags,
        Some(c"mode=755,size=75%"),
    )?;
    for directory in ["/writable/upper", "/writable/work"] {
        fs::create_dir(directory).with_context(|| format!("creating {directory}"))?;
    }
    let layers = c"lowerdir=/lower,upperdir=/writable/upper,workdir=/writable/work";
    mount_new(
        "overlay",
        "overlay",
        Path::new(ROOT),
        no_flags,
        Some(layers),
    )?;

    for name in ["dev", "proc", "sys"] {
        let (from, to) = (Path::new("/").join(name), Path::new(ROOT).join(name));
        create_directory(&to)?;
        mount_move(&from, &to)
            .with_context(|| format!("moving {} to the new root", from.display()))?;
    }
    // What switch_root(8) does: the initramfs cannot be left by pivot_root.
    chdir(ROOT).context("entering the new root")?;
    mount_move(".", "/").context("moving the new root to /")?;
    chroot(".").context("changing the root")?;
    chdir("/").context("entering /")?;

    mount_session_filesystems()?;
    link_standard_devices()?;
    let modules = Path::new("/lib/modules");
    create_directory(modules)?;
    mount_bind(request.modules_dir.as_os_str(), modules).context("binding /lib/modules")?;
    create_module_devices().context("creating the device nodes of modules")?;
    if request.scratch {
        mount_scratch()?;
    }
    delegate_controllers();
    raise_limits();
    rustix::system::sethostname(b"lab").context("setting the host name")?;
    bring_up_loopback().context("bringing the loopback interface up")
}

fn mount_session_filesystems() -> anyhow::Result<()> {
    let nosuid = MountFlags::NOSUID | MountFlags::NODEV;
    // /dev/pts: as systemd mounts it, for which 5 is the group "tty" of Debian.
    let pts = c"ptmxmode=666,mode=620,gid=5";
    let plan: [(&str, &str, MountFlags, Option<&CStr>); 5] = [
        (
            "devpts",
            "/dev/pts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            Some(pts),
        ),
        ("tmpfs", "/dev/shm", nosuid, Some(c"mode=1777")),
        ("mqueue", "/dev/mqueue", nosuid, None),
        // The machine's /run has the sockets and locks of its own processes.
        ("tmpfs", "/run", nosuid, Some(c"mode=755")),
        (
            "cgroup2",
            "/sys/fs/cgroup",
            nosuid | MountFlags::NOEXEC,
            None,
        ),
    ];
    for (kind, target, flags, data) in plan {
        if !target.starts_with("/sys") {
            create_directory(Path::new(target))?;
        }
        mount_new(kind, kind, Path::new(target), flags, data)?;
    }
    let lock = Path::new("/run/lock");
    create_directory(lock)?;
    fs::set_permissions(lock, fs::Permissions::from_mode(0o1777)).context("/run/lock")
}

fn link_standard_devices() -> anyhow::Result<()> {
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        symlink(target, link).with_context(|| format!("linking {link}"))?;
    }
    Ok(())
}

/// Makes the nodes of `modules.devname`: opening one loads its module. On a
/// running system, `kmod static-nodes` and systemd-tmpfiles do this.
fn create_module_devices() -> anyhow::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let path = Path::new("/lib/modules")
        .join(release.trim())
        .join("modules.devname");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        // "tun net/tun c10:200"
        let parsed = line.split_whitespace().collect::<Vec<_>>();
        let [_module, node, device] = parsed[..] else {
            bail!("{}: {line:?} is not MODULE NODE DEVICE", path.display());
        };
        let Some((kind, numbers)) = parse_device(device) else {
            bail!("{}: {device:?} is not a device number", path.display());
        };
        let node = Path::new("/dev").join(node);
        if let Some(parent) = node.parent() {
            create_directory(parent)?;
        }
        match mknodat(CWD, &node, kind, Mode::from_raw_mode(0o600), numbers) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| node.display().to_string()),
        }
    }
    Ok(())
}

fn parse_device(text: &str) -> Option<(FileType, u64)> {
    let kind = match text.get(..1)? {
        "c" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        _ => return None,
    };
    let (major, minor) = text.get(1..)?.split_once(':')?;
    Some((kind, makedev(major.parse().ok()?, minor.parse().ok()?)))
}

fn mount_scratch() -> anyhow::Result<()> {
    let disk = fs::read_dir("/sys/block")
        .context("reading /sys/block")?
        .flatten()
        .find(|entry| {
            fs::read_to_string(entry.path().join("serial"))
                .is_ok_and(|text| text.trim() == SCRATCH_SERIAL)
        })
        .context("there is no scratch disk")?;
    let device = Path::new("/dev").join(disk.file_name());
    create_directory(Path::new(SCRATCH_DIRECTORY))?;
    mount(
        &device,
        SCRATCH_DIRECTORY,
        "ext4",
        MountFlags::NOATIME,
        None,
    )
    .with_context(|| format!("mounting {}", device.display()))
}

/// Gives the cgroups below the root every controller, as systemd does.
fn delegate_controllers() {
    let root = Path::new("/sys/fs/cgroup");
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
        return;
    };
    for controller in controllers.split_whitespace() {
        // One at a time: the kernel takes all that it is told or none.
        let _ = fs::write(
            root.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

/// The limits that systemd gives; the kernel's own 4096 descriptors are few.
fn raise_limits() {
    let limit = Rlimit {
        current: Some(1024),
        maximum: Some(524_288),
    };
    let _ = setrlimit(Resource::Nofile, limit);
    let core = Rlimit {
        current: Some(0),
        maximum: None,
    };
    let _ = setrlimit(Resource::Core, core);
}

/// Sets `IFF_UP` on interface 1, which is `lo` in every network namespace, with
/// an `RTM_NEWLINK` request (rtnetlink(7)).
fn bring_up_loopback() -> anyhow::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    let mut message = Vec::new();
    // struct nlmsghdr: length, type, flags, sequence, port.
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    // struct ifinfomsg: family and type, index, flags, change mask.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&1i32.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    // NETLINK_ROUTE is protocol 0, the default.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    Ok(())
}

fn mount_new(
    kind: &str,
    source: &str,
    target: &Path,
    flags: MountFlags,
    data: Option<&CStr>,
) -> anyhow::Result<()> {
    mount(OsStr::new(source), target, kind, flags, data)
        .with_context(|| format!("mounting {kind} on {}", target.display()))
}

fn create_directory(path: &Path) -> anyhow::Result<()> {
    // Asked first: on the overlay a look is cheap, and /lib/modules may be
    // reached through a symbolic link.
    if fs::metadata(path).is_ok_and(|found| found.mode() & 0o170_000 == 0o040_000) {
        return Ok(());
    }
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_of_modules_devname_are_understood() {
        assert_eq!(
            parse_device("c10:200"),
            Some((FileType::CharacterDevice, makedev(10, 200)))
        );
        assert_eq!(
            parse_device("b7:0"),
            Some((FileType::BlockDevice, makedev(7, 0)))
        );
        for wrong in ["", "c", "x1:2", "c1", "c:", "c1:x", "é1:2"] {
            assert_eq!(parse_device(wrong), None, "{wrong:?}");
        }
    }
}
