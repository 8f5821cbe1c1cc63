//! The server of this machine's root directory.
//!
//! There are two programs of the name, with different options: the one that
//! came with QEMU until 7.2 (Debian 12), and its successor in Rust.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit};

use super::process::{Tied, TiedCommand};
use crate::{command, packages};

/// It keeps a descriptor for every file that the lab has looked up. Fewer than
/// this do not last; more than a million it does not ask for itself.
const MIN_DESCRIPTORS: u64 = 1 << 16;
const MAX_DESCRIPTORS: u64 = 1_000_000;
/// How long sudo may take to start it.
const DEADLINE: Duration = Duration::from_secs(10);

/// Starts the server and returns the connection for QEMU. Neither end has a name
/// any more by then.
pub fn start() -> Result<(Tied, UnixStream)> {
    let program = packages::VIRTIOFSD_PATHS
        .iter()
        .copied()
        .find(|path| Path::new(path).exists())
        .context("virtiofsd is missing")?;
    // For others than root the old one fails before it helps, and says nothing
    // that is taken for the new one.
    let help = command::output(Command::new(program).arg("--help")).unwrap_or_default();
    let directory = tempfile::Builder::new()
        .prefix("mote-lab-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let path = directory.path().join("virtiofs");
    if rustix::process::geteuid().is_root() {
        start_as_root(program, &help, &path)
    } else {
        start_by_sudo(program, &help, &path)
    }
}

fn start_as_root(program: &str, help: &str, path: &Path) -> Result<(Tied, UnixStream)> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let connection = connect(path)?;
    let mut virtiofsd = TiedCommand::new(program);
    let descriptor = virtiofsd.inherit(OwnedFd::from(listener));
    virtiofsd
        .arg(format!("--fd={descriptor}"))
        .args(options(help));
    Ok((virtiofsd.start()?, connection))
}

/// sudo closes descriptors, so the server makes its socket itself. It cannot be
/// killed by us either; it ends when QEMU closes the connection.
fn start_by_sudo(program: &str, help: &str, path: &Path) -> Result<(Tied, UnixStream)> {
    let group = command::output(Command::new("id").arg("-gn"))?;
    // May ask for the password; the server itself starts in the background.
    let status = Command::new("sudo")
        .arg("-v")
        .status()
        .context("cannot run sudo, which others than root need for the lab's virtiofsd")?;
    if !status.success() {
        bail!(
            "sudo refused; the lab needs it, unless root starts it, to serve this machine's files"
        );
    }
    let mut sudo = TiedCommand::new("sudo");
    sudo.args(["-n", "--", program])
        .arg(format!("--socket-path={}", path.display()))
        .arg(format!("--socket-group={}", group.trim()))
        .args(options(help));
    let mut virtiofsd = sudo.start()?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        match connect(path) {
            Ok(connection) => return Ok((virtiofsd, connection)),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(virtiofsd.last_words()));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).with_context(|| format!("cannot connect to {}", path.display()))
}

/// The options for sharing `/`, for the program whose `--help` says `help`.
fn options(help: &str) -> Vec<String> {
    let mut options: Vec<&str> = if help.contains("--shared-dir") {
        vec!["--shared-dir=/", "--sandbox=chroot", "--cache=auto"]
    } else {
        // In the foreground.
        let quiet = ["-f", "-o", "log_level=warn"];
        let shared = ["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=auto"];
        quiet.into_iter().chain(shared).collect()
    };
    // An announced mount point is an automount in the lab, and the lower layer
    // of an overlay may have none.
    for option in ["--readonly", "--no-announce-submounts"] {
        if help.contains(option) {
            options.push(option);
        }
    }
    let mut options: Vec<String> = options.into_iter().map(str::to_owned).collect();
    // To ask for more than the hard limit takes a capability that containers do
    // not have, and failing to get it is fatal.
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit >= MIN_DESCRIPTORS => {
            options.push(format!("--rlimit-nofile={}", limit.min(MAX_DESCRIPTORS)));
        }
        _ => {}
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_gets_the_options_it_knows() {
        let old = options("-o source=PATH  shared directory tree\n");
        assert!(old.contains(&"source=/".to_owned()), "{old:?}");
        assert!(!old.iter().any(|option| option.starts_with("--shared-dir")));
        let new = options("--shared-dir <SHARED_DIR>\n --readonly\n");
        assert!(new.contains(&"--shared-dir=/".to_owned()), "{new:?}");
        assert!(new.contains(&"--readonly".to_owned()), "{new:?}");
        assert!(!new.contains(&"-o".to_owned()), "{new:?}");
    }
}
