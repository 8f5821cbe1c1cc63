//! virtiofsd, one process for each volume.
//!
//! It has nothing of this process but its end of a listening socket that has no name
//! any more, and ends when `mote-vmm` does: with its connection. It confines itself to
//! the directory (`sandbox=namespace`: mounts, PIDs and network of its own).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::VolumeOption;

const PROGRAM: &str = "virtiofsd";
/// Where Debian 13 and 12 have it, outside of `PATH`.
const PLACES: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// More descriptors than this it does not ask for itself.
const MAX_DESCRIPTORS: u64 = 1_000_000;

/// How long a server may take to end after its connection has.
const GRACE: Duration = Duration::from_secs(2);

/// A server; ended, when dropped, if it has not done so by itself.
#[derive(Debug)]
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let deadline = Instant::now() + GRACE;
        while let Ok(None) = self.0.try_wait() {
            if Instant::now() >= deadline {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            thread::sleep(Duration::from_millis(1));
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

/// Starts `program` for `volume`; returns the connection for `mote-vmm`, with whose end
/// it ends, and the process.
pub fn serve(program: &Path, volume: &VolumeOption) -> Result<(UnixStream, Server), ServerError> {
    // Links are followed here, and not again.
    let source = std::fs::canonicalize(&volume.source)
        .and_then(|path| std::fs::read_dir(&path).map(|_| path))
        .map_err(|source| ServerError::NotADirectory {
            path: volume.source.clone(),
            source,
        })?;
    start(program, &source, volume.read_only).map_err(|error| ServerError::Start {
        program: program.to_owned(),
        path: source.clone(),
        source: error,
    })
}

fn start(program: &Path, source: &Path, read_only: bool) -> io::Result<(UnixStream, Server)> {
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
        // A terminal's signals are for the workload, which may have files to write.
        .process_group(0);
    let spawn = || {
        if read_only {
            protect(source)?;
        }
        command.spawn()
    };
    // The mounts of a thread are those of its children.
    let child = thread::scope(|scope| scope.spawn(spawn).join());
    let child = child.map_err(|_| io::Error::other("the thread that starts it panicked"))??;
    Ok((connection, Server(child)))
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
            let error = serve(program, &volume).unwrap_err().to_string();
            assert!(error.contains(source), "{error}");
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let error = find_server(Some(Path::new("/no/virtiofsd"))).unwrap_err();
        assert!(error.to_string().contains("--virtiofsd /no/virtiofsd"));
    }
}
