//! The guest without a machine: the init's protocol, streams and processes as
//! PID 1 of a PID namespace, its "vsock" a Unix socket over which each
//! connection's host end is handed out, as the VMM does it.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;

use guest_init::failure::SetupError;
use guest_init::guest::{System, serve};
use guest_init::transport::Transport;
use guest_protocol::Workload;
use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The argument that makes the test program a guest; the channel's number follows.
pub const ARGUMENT: &str = "as-guest";

/// A command that runs this program again as a guest with `channel` as its way
/// to the host. The caller keeps `channel` open until the command has started.
pub fn command(channel: BorrowedFd<'_>) -> Command {
    rustix::io::fcntl_setfd(channel, FdFlags::empty()).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child=SIGKILL"])
        .arg(std::env::current_exe().unwrap())
        .arg(ARGUMENT)
        .arg(channel.as_raw_fd().to_string());
    command
}

/// Whether PID namespaces can be made and users changed here.
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs as the guest, if this process was started as one.
pub fn run_if_asked() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(ARGUMENT) {
        return;
    }
    let number = args.next().unwrap().parse().unwrap();
    // SAFETY: the parent left this descriptor open for us and told us its
    // number; nothing else in this process knows it.
    let channel = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&channel, FdFlags::CLOEXEC).unwrap();
    serve(&Channel(channel), &mut NoMounts).unwrap();
    std::process::exit(0);
}

struct NoMounts;

impl System for NoMounts {
    fn enter(&mut self) -> Result<(), SetupError> {
        Ok(())
    }

    fn configure(&mut self, _: &Workload) -> Result<Option<File>, SetupError> {
        Ok(None)
    }
}

struct Channel(OwnedFd);

impl Transport for Channel {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let passed = [theirs.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
        let text = format!("{{\"port\":{port}}}");
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(text.as_bytes())],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(ours)
    }
}
