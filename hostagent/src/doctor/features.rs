//! What the host's kernel offers.

use super::{Check, Finding, Host};

/// The kernel's version.
pub const KERNEL: Check = Check {
    name: "kernel",
    purpose: "watches VM processes by pidfd",
    required: true,
    run: kernel,
};

/// cgroup v2.
pub const CGROUP: Check = Check {
    name: "cgroup-v2",
    purpose: "limits what a microVM's process may use",
    required: false,
    run: cgroup,
};

/// overlayfs.
pub const OVERLAY: Check = Check {
    name: "overlay",
    purpose: "shares the host's files with the lab",
    required: false,
    run: overlay,
};

/// User namespaces.
pub const USER_NAMESPACES: Check = Check {
    name: "user-namespaces",
    purpose: "confines a microVM's process",
    required: false,
    run: user_namespaces,
};

/// `CLONE_INTO_CGROUP` came with 5.7, Landlock with 5.13; 5.10 is the oldest
/// kernel that is still maintained with the former.
const OLDEST: (u32, u32) = (5, 10);

fn kernel(host: &Host) -> Finding {
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let (major, minor) = OLDEST;
    match version(release) {
        Some(found) if found >= OLDEST => Finding::ok(format!("Linux {release}")),
        Some(_) => Finding::missing(
            format!("Linux {release}"),
            format!("boot Linux {major}.{minor} or later"),
        ),
        None => Finding::missing(
            "its version cannot be read",
            format!("mount /proc, and boot Linux {major}.{minor} or later"),
        ),
    }
}

/// `6.1.0-30-amd64` is 6.1.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn cgroup(host: &Host) -> Finding {
    match host.read("/sys/fs/cgroup/cgroup.controllers") {
        Ok(controllers) => Finding::ok(format!("controllers: {}", controllers.trim())),
        Err(_) => Finding::missing(
            "/sys/fs/cgroup is not a cgroup v2 tree",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

fn overlay(host: &Host) -> Finding {
    let known = host.read("/proc/filesystems").unwrap_or_default();
    if known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"))
    {
        return Finding::ok("in the kernel");
    }
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = host.read(&format!("/lib/modules/{}/modules.dep", release.trim()));
    if modules.is_ok_and(|list| list.contains("/overlay.ko")) {
        return Finding::ok("as a module");
    }
    Finding::missing(
        "the kernel has no overlayfs",
        "load the module: modprobe overlay",
    )
}

fn user_namespaces(host: &Host) -> Finding {
    if !host.path("/proc/self/ns/user").exists() {
        return Finding::missing(
            "the kernel has no user namespaces",
            "boot a kernel with CONFIG_USER_NS",
        );
    }
    let number = |path| -> Option<u64> { host.read(path).ok()?.trim().parse().ok() };
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Finding::missing(
            "user namespaces are limited to 0",
            "sysctl user.max_user_namespaces=15000",
        );
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Finding::ok("for root only");
    }
    Finding::ok("available")
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::tests::{empty_host, put};
    use super::*;

    #[test]
    fn old_and_unreadable_kernels_are_told() {
        let (_directory, host) = empty_host();
        assert_eq!(kernel(&host).status, Status::Missing);
        for (release, status) in [
            ("4.19.0-27-amd64\n", Status::Missing),
            ("5.9.1\n", Status::Missing),
            ("5.10.0\n", Status::Ok),
            ("6.1.0-30-cloud-amd64\n", Status::Ok),
            ("10.0-rc1\n", Status::Ok),
        ] {
            put(&host, "/proc/sys/kernel/osrelease", release);
            assert_eq!(kernel(&host).status, status, "{release}");
        }
    }

    #[test]
    fn overlay_may_be_built_in_or_a_module() {
        let (_directory, host) = empty_host();
        put(&host, "/proc/sys/kernel/osrelease", "6.1.0\n");
        assert_eq!(overlay(&host).status, Status::Missing);
        put(
            &host,
            "/lib/modules/6.1.0/modules.dep",
            "kernel/fs/overlayfs/overlay.ko:\n",
        );
        assert_eq!(overlay(&host).found, "as a module");
        put(&host, "/proc/filesystems", "nodev\tsysfs\nnodev\toverlay\n");
        assert_eq!(overlay(&host).found, "in the kernel");
    }

    #[test]
    fn user_namespaces_may_be_limited_away() {
        let (_directory, host) = empty_host();
        assert_eq!(user_namespaces(&host).status, Status::Missing);
        put(&host, "/proc/self/ns/user", "");
        assert_eq!(user_namespaces(&host).status, Status::Ok);
        put(&host, "/proc/sys/user/max_user_namespaces", "0\n");
        assert_eq!(user_namespaces(&host).status, Status::Missing);
    }

    #[test]
    fn a_cgroup_v1_tree_is_not_enough() {
        let (_directory, host) = empty_host();
        put(&host, "/sys/fs/cgroup/memory/tasks", "");
        assert_eq!(cgroup(&host).status, Status::Missing);
        put(&host, "/sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        assert_eq!(cgroup(&host).status, Status::Ok);
    }
}
