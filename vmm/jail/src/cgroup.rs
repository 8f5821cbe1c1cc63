//! The cgroup (version 2) a process is born in.
//!
//! Each has one below `mote` in the hierarchy. It is held by a lock on its directory
//! and removed when the process has ended; what a killed agent left behind is removed
//! by the next one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// The parent of them all.
const PARENT: &str = "mote";
/// Where systemd mounts version 2: alone, and beside version 1 (its CGROUP_DELEGATION.md).
const USUAL_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// `CGROUP2_SUPER_MAGIC` (statfs(2)).
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;
/// What limits are for; a hierarchy may lack some.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// `cpu.max` counts in periods of this many microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// What a process and its threads may use of the host. A limit that the hierarchy has
/// no controller for is not set, but for those of `io`, which somebody asked for: they
/// are kept or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Processors' worth of time (`cpu.max`).
    pub cpus: u64,
    /// Memory, what the kernel keeps for it and its page cache included
    /// (`memory.max`), in bytes.
    pub memory_bytes: u64,
    /// Threads (`pids.max`).
    pub threads: u64,
    /// Reads and writes (`io.max`), of each disk at most once.
    pub io: Vec<IoLimit>,
}

/// What may be read from and written to one disk of the host, past its page cache. What
/// is `None` has no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoLimit {
    /// The number of the block device, of a whole disk.
    pub major: u32,
    /// Its second half.
    pub minor: u32,
    /// Bytes read a second.
    pub read_bps: Option<u64>,
    /// Bytes written a second.
    pub write_bps: Option<u64>,
    /// Reads a second.
    pub read_iops: Option<u64>,
    /// Writes a second.
    pub write_iops: Option<u64>,
}

impl std::fmt::Display for IoLimit {
    /// As `io.max` has it (cgroup-v2.rst of Linux).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)?;
        let limits = [
            ("rbps", self.read_bps),
            ("wbps", self.write_bps),
            ("riops", self.read_iops),
            ("wiops", self.write_iops),
        ];
        for (name, limit) in limits {
            match limit {
                Some(limit) => write!(f, " {name}={limit}")?,
                None => write!(f, " {name}=max")?,
            }
        }
        Ok(())
    }
}

/// The part of the hierarchy that holds the cgroups of this agent and all others.
#[derive(Debug)]
pub struct Cgroups {
    directory: PathBuf,
    /// What its cgroups have (`cgroup.subtree_control`).
    controllers: String,
}

/// A cgroup. Dropping it removes it, if nothing runs in it any more.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroups {
    /// Finds the hierarchy and prepares it; `None` where there is none of version 2,
    /// or this user may not make cgroups in it.
    pub fn open() -> io::Result<Option<Self>> {
        match hierarchy()? {
            Some(hierarchy) => Self::open_in(&hierarchy),
            None => Ok(None),
        }
    }

    fn open_in(hierarchy: &Path) -> io::Result<Option<Self>> {
        let directory = hierarchy.join(PARENT);
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if is_not_ours(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        for above in [hierarchy, &directory] {
            give_controllers_on(above);
        }
        let controllers = fs::read_to_string(directory.join("cgroup.subtree_control"))?;
        Ok(Some(Self {
            directory,
            controllers,
        }))
    }

    fn create(&self, name: &str, limits: &CgroupLimits) -> io::Result<Option<Cgroup>> {
        let path = self.directory.join(name);
        let directory = match make_and_lock(&path) {
            Ok(directory) => directory,
            Err(error) if is_not_ours(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let cgroup = Cgroup { path, directory };
        if self.have("cpu") {
            let quota = limits.cpus.saturating_mul(CPU_PERIOD_US);
            cgroup.set("cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
        }
        if self.have("memory") {
            cgroup.set("memory.max", &limits.memory_bytes.to_string())?;
            // A process that has lost a thread is of no use.
            cgroup.set("memory.oom.group", "1")?;
        }
        if self.have("pids") {
            cgroup.set("pids.max", &limits.threads.to_string())?;
        }
        for limit in &limits.io {
            cgroup.limit_io(limit)?;
        }
        Ok(Some(cgroup))
    }

    fn have(&self, controller: &str) -> bool {
        let mut controllers = self.controllers.split_whitespace();
        controllers.any(|one| one == controller)
    }

    /// Removes what agents that were killed have left behind. Looks at every cgroup
    /// there is.
    pub fn remove_abandoned(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        for entry in entries.flatten().filter(is_directory) {
            let path = entry.path();
            let Ok(directory) = open_directory(&path) else {
                continue;
            };
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = fs::remove_dir(&path);
            }
        }
    }
}

/// Lets the cgroups below `directory` have what controllers it has itself.
fn give_controllers_on(directory: &Path) {
    let list = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let given_on = list("cgroup.subtree_control");
    for controller in list("cgroup.controllers").split_whitespace() {
        let is_given_on = given_on.split_whitespace().any(|one| one == controller);
        if CONTROLLERS.contains(&controller) && !is_given_on {
            // One that cannot be given on sets no limit.
            let _ = write(
                &directory.join("cgroup.subtree_control"),
                &format!("+{controller}"),
            );
        }
    }
}

impl Cgroup {
    /// Makes the cgroup `name`, if there is a place for it; `None` where this user may
    /// not.
    pub fn create(
        cgroups: Option<&Cgroups>,
        name: &str,
        limits: &CgroupLimits,
    ) -> io::Result<Option<Self>> {
        let cgroup = match cgroups {
            Some(cgroups) => cgroups.create(name, limits)?,
            None => None,
        };
        match cgroup {
            None if !limits.io.is_empty() => Err(no_io_controller()),
            cgroup => Ok(cgroup),
        }
    }

    /// Sets one limit, if the kernel has it: a controller may come without some.
    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        match write(&self.path.join(file), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// How many of its processes were killed for want of memory, by its own limit or
    /// by one above (`oom_kill` of `memory.events`); 0 where the hierarchy has no
    /// memory controller.
    pub fn out_of_memory_kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// What a process writes its PID to, or 0, to enter it (`cgroup.procs`).
    pub fn members(&self) -> io::Result<File> {
        File::options()
            .write(true)
            .open(self.path.join("cgroup.procs"))
    }

    fn limit_io(&self, limit: &IoLimit) -> io::Result<()> {
        match write(&self.path.join("io.max"), &limit.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(no_io_controller()),
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!(
                    "cannot set io.max to \"{limit}\" ({error}); it must be a whole disk, not a partition"
                ),
            )),
            Ok(()) => Ok(()),
        }
    }
}

/// Version 1 has `blkio.throttle`, which knows nothing of writes through the page cache.
fn no_io_controller() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this host cannot limit reads and writes: it has no cgroups of version 2 with the controller \"io\"",
    )
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while something runs in it; then the next agent removes it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Writes to a file that is there already.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// A file system that is mounted read-only, or belongs to another user.
fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Where cgroups of version 2 are mounted: where nearly everyone has them, or where
/// this process's mounts say (proc_pid_mountinfo(5)).
pub fn hierarchy() -> io::Result<Option<PathBuf>> {
    let is_version_2 =
        |path: &&str| rustix::fs::statfs(*path).is_ok_and(|found| found.f_type == CGROUP2_MAGIC);
    if let Some(usual) = USUAL_MOUNTS.iter().copied().find(is_version_2) {
        return Ok(Some(PathBuf::from(usual)));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    }))
}

/// Makes a cgroup's directory and holds the lock that says it is in use.
fn make_and_lock(path: &Path) -> io::Result<OwnedFd> {
    loop {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let directory = match open_directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => result?,
        };
        flock(&directory, FlockOperation::LockExclusive)?;
        // Else somebody took it for abandoned before it was locked.
        let ours = File::from(directory.try_clone()?).metadata()?.ino();
        if fs::metadata(path).is_ok_and(|there| there.ino() == ours) {
            return Ok(directory);
        }
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CgroupLimits = CgroupLimits {
        cpus: 2,
        memory_bytes: 64 << 20,
        threads: 4,
        io: Vec::new(),
    };

    /// An ordinary directory that stands in for one.
    fn hierarchy() -> tempfile::TempDir {
        let hierarchy = tempfile::tempdir().unwrap();
        let parent = hierarchy.path().join(PARENT);
        fs::create_dir(&parent).unwrap();
        fs::write(parent.join("cgroup.subtree_control"), "").unwrap();
        hierarchy
    }

    #[test]
    fn kills_for_want_of_memory_are_counted() {
        let hierarchy = hierarchy();
        let cgroups = Cgroups::open_in(hierarchy.path()).unwrap().unwrap();
        let cgroup = cgroups.create("vm", &LIMITS).unwrap().unwrap();
        assert_eq!(cgroup.out_of_memory_kills(), 0);
        let events = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 1\n";
        fs::write(cgroup.path.join("memory.events"), events).unwrap();
        assert_eq!(cgroup.out_of_memory_kills(), 1);
    }

    #[test]
    fn a_limit_is_written_as_the_kernel_reads_it() {
        let limit = IoLimit {
            major: 8,
            minor: 16,
            read_bps: Some(1 << 20),
            write_iops: Some(100),
            ..IoLimit::default()
        };
        assert_eq!(
            limit.to_string(),
            "8:16 rbps=1048576 wbps=max riops=max wiops=100"
        );
    }

    #[test]
    fn a_limit_on_io_that_nobody_keeps_is_refused() {
        let hierarchy = hierarchy();
        let limits = CgroupLimits {
            io: vec![IoLimit::default()],
            ..LIMITS
        };
        let cgroups = Cgroups::open_in(hierarchy.path()).unwrap().unwrap();
        let error = Cgroup::create(Some(&cgroups), "it", &limits).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        // And leaves nothing behind.
        assert!(!hierarchy.path().join(PARENT).join("it").exists());
    }

    /// An ordinary directory stands in for the hierarchy: what matters here is who
    /// removes what.
    #[test]
    fn a_cgroup_in_use_stays_and_an_abandoned_one_goes() {
        let hierarchy = hierarchy();
        let parent = hierarchy.path().join(PARENT);
        let cgroups = Cgroups::open_in(hierarchy.path()).unwrap().unwrap();
        let used = cgroups.create("used", &LIMITS).unwrap();
        fs::create_dir(parent.join("abandoned")).unwrap();
        let other = cgroups.create("other", &LIMITS).unwrap();
        cgroups.remove_abandoned();
        assert!(parent.join("used").exists());
        assert!(!parent.join("abandoned").exists());
        drop((used, other));
        assert!(!parent.join("used").exists());
    }
}
