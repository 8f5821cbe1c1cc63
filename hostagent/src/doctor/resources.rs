//! Memory and disk.

use rustix::fs::{Access, AtFlags, CWD, accessat, statvfs};

use super::{Check, Finding, Host, nearest_existing};

/// Memory that is free for guests.
pub const MEMORY: Check = Check {
    name: "memory",
    purpose: "holds the guests",
    required: true,
    run: memory,
};

/// Disk space for the store.
pub const DISK: Check = Check {
    name: "disk",
    purpose: "keeps the images",
    required: true,
    run: disk,
};

/// A guest with 128 MiB, and what runs it.
const LEAST_MEMORY: u64 = 192 << 20;
/// One small image.
const LEAST_DISK: u64 = 256 << 20;

/// `MemTotal` of `/proc/meminfo`.
pub fn memory_total_bytes(meminfo: &str) -> Option<u64> {
    kibibytes(meminfo, "MemTotal:")
}

fn kibibytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

fn memory(host: &Host) -> Finding {
    let meminfo = host.read("/proc/meminfo").unwrap_or_default();
    let total = memory_total_bytes(&meminfo);
    let available = kibibytes(&meminfo, "MemAvailable:");
    let (Some(total), Some(available)) = (total, available) else {
        return Finding::missing("/proc/meminfo cannot be read", "mount /proc");
    };
    let found = format!("{} MiB available of {}", available >> 20, total >> 20);
    if available < LEAST_MEMORY {
        let advice = format!("free some: a small guest takes {} MiB", LEAST_MEMORY >> 20);
        return Finding::missing(found, advice);
    }
    Finding::ok(found)
}

fn disk(host: &Host) -> Finding {
    let store = host.store.display();
    let nearest = nearest_existing(&host.store);
    let writable = accessat(CWD, nearest, Access::WRITE_OK, AtFlags::EACCESS);
    if let Err(error) = writable {
        return Finding::missing(
            format!("{} cannot be written to: {error}", nearest.display()),
            "run as root, or set MOTE_ROOT to a directory you can write to",
        );
    }
    let free = match statvfs(nearest) {
        Ok(fs) => fs.f_bavail.saturating_mul(fs.f_frsize),
        Err(error) => {
            return Finding::missing(
                format!("the free space at {store} cannot be read: {error}"),
                "set MOTE_ROOT to a directory on a local disk",
            );
        }
    };
    let found = format!("{} MiB free for {store}", free >> 20);
    if free < LEAST_DISK {
        return Finding::missing(
            found,
            "free some, or set MOTE_ROOT to a directory on a larger disk",
        );
    }
    Finding::ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::tests::{empty_host, put};
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        let (_directory, host) = empty_host();
        assert_eq!(memory(&host).status, Status::Missing);
        put(
            &host,
            "/proc/meminfo",
            "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n",
        );
        let finding = memory(&host);
        assert_eq!(finding.status, Status::Ok);
        assert_eq!(finding.found, "19531 MiB available of 23437");
        put(
            &host,
            "/proc/meminfo",
            "MemTotal: 90000 kB\nMemAvailable: 1 kB\n",
        );
        assert_eq!(memory(&host).status, Status::Missing);
    }

    #[test]
    fn the_disk_is_that_of_the_nearest_directory_there_is() {
        let (directory, host) = empty_host();
        let finding = disk(&host);
        assert!(finding.found.contains("var/lib/mote"), "{finding:?}");
        assert_eq!(nearest_existing(&host.store), directory.path());
    }
}
