//! virtiofsd, one process for each volume.
//!
//! It has nothing of this process but its end of a listening socket that has no name
//! any more and a pipe for its messages, and ends when `mote-vmm` does: with its
//! connection. It confines itself to the directory (`sandbox=namespace`: mounts, PIDs
//! and network of its own). What it may use of the host has limits, in a cgroup of its
//! own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use jail::{Cgroup, CgroupLimits, Cgroups, IoLimit};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::VolumeOption;
use crate::vm_process::printable;

const PROGRAM: &str = "virtiofsd";
/// Where Debian 13 and 12 have it, outside of `PATH`.
const PLACES: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// More descriptors than this it does not ask for itself.
const MAX_DESCRIPTORS: u64 = 1_000_000;

/// What it takes for itself, and keeps of directories and files.
const MEMORY_BYTES: u64 = 256 << 20;
/// The old one has 64 for requests.
const THREADS: u64 = 80;
/// A message that is longer is told in parts.
const MAX_MESSAGE_BYTES: u64 = 1024;

/// How long a server may take to end after its connection has.
const GRACE: Duration = Duration::from_secs(2);

/// A server; ended, when dropped, if it has not done so by itself.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// Closed when all its messages have been told.
    told: Receiver<()>,
    /// After the process: it can be removed when that is gone.
    _cgroup: Option<Cgroup>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let deadline = Instant::now() + GRACE;
        while let Ok(None) = self.process.try_wait() {
            if Instant::now() >= deadline {
                let _ = self.process.kill();
                let _ = self.process.wait();
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = self.told.recv_timeout(left);
    }
}

/// The guest that a server works for.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Its microVM's id.
    pub id: &'a str,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Its memory.
    pub memory_bytes: u64,
    /// What it may read and write of the host's disks.
    pub io_limits: &'a [IoLimit],
    /// Where cgroups are made; `None` where there is no place for them.
    pub cgroups: Option<&'a Cgroups>,
}

impl Client<'_> {
    /// A server may use as many processors as its client, and one more.
    fn cgroup_limits(&self) -> CgroupLimits {
        CgroupLimits {
            cpus: u64::from(self.vcpus) + 1,
            // A page of the guest's counts for the first who touches it.
            memory_bytes: self.memory_bytes.saturating_add(MEMORY_BYTES),
            threads: THREADS,
            io: self.io_limits.to_vec(),
        }
    }
}

/// Why a volume is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It is not installed.
    #[error(
        "{PROGRAM} was not found on PATH, nor at {}; install it (Debian 12: qemu-system-common, later: virtiofsd), or name it by --virtiofsd",
        PLACES.join(" or ")
    )]
    NotFound,
    /// The user's path is none.
    #[error("--virtiofsd {}: there is no such file", .0.display())]
    NoSuchFile(PathBuf),
    /// Nothing there that can be served.
    #[error("cannot serve {} as a volume: it must be a directory", path.display())]
    NotADirectory {
        /// What was to be served.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its limits could not be set.
    #[error("cannot make a cgroup for the server of {}", path.display())]
    Cgroup {
        /// What was to be served.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A socket or a process was refused.
    #[error("cannot start {} to serve {}", program.display(), path.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What was to be served.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The program: the user's, or the first of the name.
pub fn find_server(wanted: Option<&Path>) -> Result<PathBuf, ServerError> {
    if let Some(path) = wanted {
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => Err(ServerError::NoSuchFile(path.to_owned())),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(PROGRAM))
        .chain(PLACES.map(PathBuf::from))
        .find(|program| program.is_file())
        .ok_or(ServerError::NotFound)
}

/// Starts `program` for the volume `tag` of `client`; returns the connection for
/// `mote-vmm`, with whose end it ends, and the process. What it says, which its client
/// can make it do, goes to `tell`, line by line, on another thread.
pub fn serve(
    program: &Path,
    volume: &VolumeOption,
    tag: &str,
    client: Client<'_>,
    tell: impl FnMut(&str) + Send + 'static,
) -> Result<(UnixStream, Server), ServerError> {
    // Links are followed here, and not again.
    let source = std::fs::canonicalize(&volume.source)
        .and_then(|path| std::fs::read_dir(&path).map(|_| path))
        .map_err(|source| ServerError::NotADirectory {
            path: volume.source.clone(),
            source,
        })?;
    let failed = |error| ServerError::Start {
        program: program.to_owned(),
        path: source.clone(),
        source: error,
    };
    let name = format!("{}-{tag}", client.id);
    let no_cgroup = |error| ServerError::Cgroup {
        path: source.clone(),
        source: error,
    };
    let cgroup = Cgroup::create(client.cgroups, &name, &client.cgroup_limits());
    let cgroup = cgroup.map_err(no_cgroup)?;
    let (connection, mut process) =
        start(program, &source, volume.read_only, cgroup.as_ref()).map_err(failed)?;
    let (end, told) = channel::<()>();
    if let Some(stderr) = process.stderr.take() {
        thread::spawn(move || {
            let _end = end;
            tell_lines(stderr, tell);
        });
    }
    let server = Server {
        process,
        told,
        _cgroup: cgroup,
    };
    Ok((connection, server))
}

/// Passes on what `stderr` says until it ends.
fn tell_lines(stderr: ChildStderr, mut tell: impl FnMut(&str)) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader
            .by_ref()
            .take(MAX_MESSAGE_BYTES)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => tell(&printable(String::from_utf8_lossy(&line).trim_end())),
        }
    }
}

fn start(
    program: &Path,
    source: &Path,
    read_only: bool,
    cgroup: Option<&Cgroup>,
) -> io::Result<(UnixStream, Child)> {
    let (listener, connection) = connected()?;
    // The two programs of the name have different options.
    let help = Command::new(program).arg("--help").output()?.stdout;
    let is_old = !String::from_utf8_lossy(&help).contains("--shared-dir");
    let mut command = Command::new(program);
    command.arg("--fd=0").args(options(is_old, source));
    command
        .env_clear()
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A terminal's signals are for the workload, which may have files to write.
        .process_group(0);
    if let Some(cgroup) = cgroup {
        let mut members = cgroup.members()?;
        // SAFETY: between fork and exec only write(2) is called, which is
        // async-signal-safe and touches no memory of others.
        unsafe {
            // 0 is whoever writes it (cgroup-v2.rst of Linux, cgroup.procs).
            command.pre_exec(move || members.write_all(b"0"));
        }
    }
    let spawn = || {
        if read_only {
            protect(source)?;
        }
        command.spawn()
    };
    // The mounts of a thread are those of its children.
    let child = thread::scope(|scope| scope.spawn(spawn).join());
    let child = child.map_err(|_| io::Error::other("the thread that starts it panicked"))??;
    Ok((connection, child))
}

/// A socket that listens and has taken one connection, and that connection. Its name is
/// in the abstract namespace, chosen by the kernel, and gone with the socket.
fn connected() -> io::Result<(UnixListener, UnixStream)> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // An address of the family alone: unix(7), autobind.
    rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
    rustix::net::listen(&listener, 1)?;
    let listener = UnixListener::from(listener);
    let connection = UnixStream::connect_addr(&listener.local_addr()?)?;
    Ok((listener, connection))
}

/// Makes `source` read-only for this thread and those it starts. Mounts below it are
/// not seen there.
fn protect(source: &Path) -> io::Result<()> {
    // SAFETY: descriptors are not touched (no CLONE_FILES); mounts and the working
    // directory, which go apart, are looked up by this thread alone from here on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
    let apart = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", apart)?;
    mount_bind(source, source)?;
    mount_remount(source, MountFlags::BIND | MountFlags::RDONLY, "")?;
    Ok(())
}

fn options(is_old: bool, source: &Path) -> Vec<String> {
    let source = source.display();
    let mut options = match is_old {
        false => vec![
            format!("--shared-dir={source}"),
            "--sandbox=namespace".to_owned(),
            "--cache=auto".to_owned(),
            "--log-level=error".to_owned(),
        ],
        true => [
            "-f",
            "-o",
            "log_level=err",
            "-o",
            "sandbox=namespace",
            "-o",
            "cache=auto",
            "-o",
            &format!("source={source}"),
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    // To ask for more than the hard limit takes a capability that containers do not
    // have, and failing to get it is fatal.
    if let Some(limit) = getrlimit(Resource::Nofile).maximum {
        options.push(format!("--rlimit-nofile={}", limit.min(MAX_DESCRIPTORS)));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_gets_the_options_it_knows() {
        let old = options(true, Path::new("/srv"));
        assert!(old.contains(&"source=/srv".to_owned()), "{old:?}");
        let new = options(false, Path::new("/srv"));
        assert!(new.contains(&"--shared-dir=/srv".to_owned()), "{new:?}");
        assert!(!new.contains(&"-o".to_owned()), "{new:?}");
    }

    #[test]
    fn only_directories_are_served() {
        let program = Path::new("/bin/true");
        for source in ["/no/such/directory", "/dev/null", "/etc/passwd"] {
            let volume = VolumeOption::parse(&format!("{source}:/data")).unwrap();
            let client = Client {
                id: "id",
                vcpus: 1,
                memory_bytes: 1 << 20,
                io_limits: &[],
                cgroups: None,
            };
            let error = serve(program, &volume, "tag", client, |_| ()).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(source), "{error}");
        }
    }

    #[test]
    fn what_a_server_says_is_told_line_by_line() {
        let script =
            "echo one >&2; printf 'two\\033[2J' >&2; head -c 3000 /dev/zero | tr '\\0' x >&2";
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", script]).stderr(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let mut told = Vec::new();
        tell_lines(shell.stderr.take().unwrap(), |line| {
            told.push(line.to_owned());
        });
        shell.wait().unwrap();
        assert_eq!(told[0], "one");
        assert!(told[1].starts_with("two[2Jxxx"), "{}", told[1]);
        assert_eq!(told.len(), 4, "{told:?}");
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let error = find_server(Some(Path::new("/no/virtiofsd"))).unwrap_err();
        assert!(error.to_string().contains("--virtiofsd /no/virtiofsd"));
    }
}
