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

/// The controllers that every microVM has limits of.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

fn cgroup(host: &Host) -> Finding {
    let Ok(there) = host.read("/sys/fs/cgroup/cgroup.controllers") else {
        return Finding::missing(
            "/sys/fs/cgroup is not a cgroup v2 tree",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup",
        );
    };
    let lacking = |list: &str| {
        let has = |name: &&str| list.split_whitespace().any(|one| one == *name);
        let lacking: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
        lacking.join(", ")
    };
    let missing = lacking(&there);
    if !missing.is_empty() {
        return Finding::missing(
            format!("no controller here for {missing}: microVMs have no such limits"),
            "give the controllers on in cgroup.subtree_control above, or boot without cgroup v1",
        );
    }
    let read = |file: &str| host.read(&format!("/sys/fs/cgroup/{file}"));
    let not_given_on = lacking(&read("cgroup.subtree_control").unwrap_or_default());
    // Only the root of the whole hierarchy, which has no type, may have processes and
    // give controllers on (cgroup-v2.rst of Linux, "No Internal Process Constraint").
    let is_root = read("cgroup.type").is_err();
    let has_processes = read("cgroup.procs").is_ok_and(|list| !list.trim().is_empty());
    if !is_root && has_processes && !not_given_on.is_empty() {
        return Finding::missing(
            format!(
                "the processes in /sys/fs/cgroup itself, as in a container, keep {not_given_on} from being given on: microVMs have no such limits"
            ),
            "move them to a cgroup below it: mkdir /sys/fs/cgroup/init, and write their PIDs to its cgroup.procs",
        );
    }
    Finding::ok(format!("controllers: {}", there.trim()))
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
        put(
            &host,
            "/sys/fs/cgroup/cgroup.controllers",
            "cpu io memory pids\n",
        );
        assert_eq!(cgroup(&host).status, Status::Ok);
    }

    #[test]
    fn a_hierarchy_without_the_controllers_is_told_with_their_names() {
        let (_directory, host) = empty_host();
        put(&host, "/sys/fs/cgroup/cgroup.controllers", "memory\n");
        let finding = cgroup(&host);
        assert_eq!(finding.status, Status::Missing);
        assert!(finding.found.contains("cpu, pids"), "{finding:?}");
    }

    #[test]
    fn a_container_whose_processes_keep_controllers_from_being_given_on_is_told() {
        let (_directory, host) = empty_host();
        put(
            &host,
            "/sys/fs/cgroup/cgroup.controllers",
            "cpu memory pids\n",
        );
        put(&host, "/sys/fs/cgroup/cgroup.procs", "1\n");
        // The root of a host's hierarchy has no type.
        assert_eq!(cgroup(&host).status, Status::Ok);
        put(&host, "/sys/fs/cgroup/cgroup.type", "domain\n");
        assert_eq!(cgroup(&host).status, Status::Missing);
        let given_on = "/sys/fs/cgroup/cgroup.subtree_control";
        put(&host, given_on, "cpu memory pids\n");
        assert_eq!(cgroup(&host).status, Status::Ok);
    }
}
