//! What a VMM's confinement really is, read back from the kernel (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The namespaces a VMM has of its own.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
/// The limits of its cgroup that are told.
const CGROUP_LIMITS: [&str; 4] = ["cpu.max", "memory.max", "pids.max", "io.max"];

/// The confinement of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confinement {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its capability sets, as hexadecimal masks: `inheritable`, `permitted`,
    /// `effective`, `bounding`, `ambient`.
    pub capabilities: BTreeMap<&'static str, String>,
    /// Whether no program it executes gains anything (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// Whether others of its user may look into it (`PR_SET_DUMPABLE`).
    pub dumpable: bool,
    /// Each namespace and whether it is its own, not that of this process.
    pub own_namespaces: BTreeMap<&'static str, bool>,
    /// What it sees of file systems.
    pub root: Root,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its resource limits, as `/proc/PID/limits` names them.
    pub limits: BTreeMap<String, String>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// What it has open: number and file.
    pub descriptors: BTreeMap<u32, String>,
}

/// The root of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    /// How many file systems are mounted in its mount namespace.
    pub mounts: usize,
    /// Whether the root is mounted read-only.
    pub read_only: bool,
    /// How many files there are in it.
    pub entries: usize,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// What it is called, such as `vcpu0`.
    pub name: String,
    /// How many system call filters it is behind (`Seccomp_filters`).
    pub filters: u32,
}

/// The cgroup of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    /// Its path in the hierarchy of version 2; `None` where there is none.
    pub path: Option<String>,
    /// Its limits; those it does not have are absent.
    pub limits: BTreeMap<&'static str, String>,
}

/// Reads the confinement of process `pid`. Takes root: such a process is nobody
/// else's to look at.
pub fn read(pid: u32) -> io::Result<Confinement> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let status = Status::read(&directory)?;
    let uid = status.first_number("Uid")?;
    Ok(Confinement {
        uid,
        gid: status.first_number("Gid")?,
        groups: status.numbers("Groups"),
        capabilities: [
            ("inheritable", "CapInh"),
            ("permitted", "CapPrm"),
            ("effective", "CapEff"),
            ("bounding", "CapBnd"),
            ("ambient", "CapAmb"),
        ]
        .into_iter()
        .map(|(name, field)| (name, status.text(field).to_owned()))
        .collect(),
        no_new_privs: status.text("NoNewPrivs") == "1",
        // An undumpable process's files belong to root, whoever it runs as
        // (proc_pid(5)).
        dumpable: fs::metadata(directory.join("status"))?.uid() == uid,
        own_namespaces: NAMESPACES
            .into_iter()
            .map(|name| Ok((name, is_own(&directory, name)?)))
            .collect::<io::Result<_>>()?,
        root: root(&directory)?,
        threads: threads(&directory)?,
        limits: limits(&fs::read_to_string(directory.join("limits"))?),
        cgroup: cgroup(&directory)?,
        descriptors: descriptors(&directory)?,
    })
}

/// `/proc/PID/status`.
struct Status(String);

impl Status {
    fn read(directory: &Path) -> io::Result<Self> {
        fs::read_to_string(directory.join("status")).map(Self)
    }

    /// What stands behind `field`; nothing, if it is not there.
    fn text(&self, field: &str) -> &str {
        let mut lines = self.0.lines();
        lines
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map_or("", str::trim)
    }

    fn numbers(&self, field: &str) -> Vec<u32> {
        let words = self.text(field).split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    }

    fn first_number(&self, field: &str) -> io::Result<u32> {
        let first = self.numbers(field).first().copied();
        first.ok_or_else(|| io::Error::other(format!("its status has no {field}")))
    }
}

fn is_own(directory: &Path, name: &str) -> io::Result<bool> {
    let ours = fs::read_link(Path::new("/proc/self/ns").join(name))?;
    Ok(fs::read_link(directory.join("ns").join(name))? != ours)
}

fn root(directory: &Path) -> io::Result<Root> {
    let mounts = fs::read_to_string(directory.join("mountinfo"))?;
    let mut of_root = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some("/"));
    let options = of_root.next_back().and_then(|line| line.split(' ').nth(5));
    Ok(Root {
        mounts: mounts.lines().count(),
        read_only: options.is_some_and(|options| options.split(',').any(|it| it == "ro")),
        entries: fs::read_dir(directory.join("root"))?.count(),
    })
}

fn threads(directory: &Path) -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(directory.join("task"))? {
        // One that has ended meanwhile is none.
        let Ok(status) = Status::read(&entry?.path()) else {
            continue;
        };
        threads.push(Thread {
            name: status.text("Name").to_owned(),
            filters: status.first_number("Seccomp_filters").unwrap_or(0),
        });
    }
    Ok(threads)
}

/// Each line has a name, the soft limit, the hard one and perhaps a unit, in columns.
fn limits(text: &str) -> BTreeMap<String, String> {
    const NAME_COLUMNS: usize = 26;
    let lines = text.lines().skip(1);
    lines
        .filter_map(|line| {
            let (name, rest) = line.split_at_checked(NAME_COLUMNS)?;
            let soft = rest.split_whitespace().next()?;
            Some((name.trim().to_owned(), soft.to_owned()))
        })
        .collect()
}

fn cgroup(directory: &Path) -> io::Result<Cgroup> {
    let text = fs::read_to_string(directory.join("cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    let (Some(path), Some(hierarchy)) = (path, jail::cgroup_hierarchy()?) else {
        return Ok(Cgroup {
            path: None,
            limits: BTreeMap::new(),
        });
    };
    let directory = hierarchy.join(path.trim_start_matches('/'));
    let limits = CGROUP_LIMITS.into_iter().filter_map(|name| {
        let value = fs::read_to_string(directory.join(name)).ok()?;
        let value = value.trim();
        (!value.is_empty()).then(|| (name, value.to_owned()))
    });
    Ok(Cgroup {
        path: Some(path.to_owned()),
        limits: limits.collect(),
    })
}

fn descriptors(directory: &Path) -> io::Result<BTreeMap<u32, String>> {
    let mut descriptors = BTreeMap::new();
    for entry in fs::read_dir(directory.join("fd"))? {
        let entry = entry?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let (Some(number), Ok(target)) = (number, fs::read_link(entry.path())) {
            descriptors.insert(number, target.display().to_string());
        }
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_not_confined() {
        let own = read(std::process::id()).unwrap();
        assert!(own.own_namespaces.values().all(|own| !own), "{own:?}");
        assert!(own.threads.iter().all(|thread| thread.filters == 0));
        assert!(own.root.entries > 3 && own.descriptors.len() > 2, "{own:?}");
        assert!(own.limits.contains_key("Max open files"), "{own:?}");
    }

    #[test]
    fn limits_have_names_of_several_words() {
        let text = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max core file size        0                    0                    bytes     
";
        let limits = limits(text);
        assert_eq!(limits["Max core file size"], "0");
        assert_eq!(limits["Max cpu time"], "unlimited");
    }
}
