//! The host's end of the protocol, as plainly as it can be written.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus as ProcessStatus};
use std::thread;

use guest_protocol::{
    CONTROL_PORT, Decoder, ExitStatus, GuestMessage, HostMessage, STDERR_PORT, STDIN_PORT,
    STDOUT_PORT, StartFailure, StartFailureKind, Workload, write_message,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::as_guest;

/// A workload of root at the root, without input.
pub fn workload(args: &[&str]) -> Workload {
    Workload {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
        working_dir: "/".into(),
        user: String::new(),
        hostname: "guest".into(),
        stdin: false,
        hosts_file: None,
        resolv_conf: None,
        network: None,
        mounts: Vec::new(),
    }
}

pub fn shell(script: &str) -> Workload {
    workload(&["/bin/sh", "-c", script])
}

/// A guest that has said `Ready`.
pub struct Connected {
    process: Child,
    channel: OwnedFd,
    control: UnixStream,
    decoder: Decoder,
}

/// A guest whose workload runs.
pub struct Guest {
    connected: Connected,
    pub stdin: Option<UnixStream>,
    pub stdout: UnixStream,
    stderr: UnixStream,
}

/// How it went.
pub struct Outcome {
    result: Result<ExitStatus, StartFailure>,
    pub stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Outcome {
    pub fn status(&self) -> Result<ExitStatus, StartFailureKind> {
        self.result.clone().map_err(|failure| failure.kind)
    }

    pub fn message(&self) -> &str {
        match &self.result {
            Ok(_) => "",
            Err(failure) => &failure.message,
        }
    }

    pub fn stdout_text(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    pub fn stderr_text(&self) -> &str {
        str::from_utf8(&self.stderr).unwrap()
    }
}

impl Guest {
    /// Runs a workload without input to its end.
    pub fn run(workload: &Workload) -> Outcome {
        Self::connect().run_with(&HostMessage::Start(workload.clone()))
    }

    /// Starts a guest and waits for `Ready`.
    pub fn connect() -> Connected {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let process = as_guest::command(theirs.as_fd()).spawn().unwrap();
        drop(theirs);
        let control = accept(&ours, CONTROL_PORT).unwrap();
        let mut connected = Connected {
            process,
            channel: ours,
            control,
            decoder: Decoder::default(),
        };
        let first = connected.read();
        assert!(matches!(first, GuestMessage::Ready { .. }), "{first:?}");
        connected
    }

    /// Starts a workload and waits for `Started`.
    pub fn start(workload: &Workload) -> Self {
        let connected = Self::connect();
        connected.send(&HostMessage::Start(workload.clone()));
        let mut guest = connected.accept_streams(workload.stdin);
        let message = guest.connected.read();
        assert!(
            matches!(message, GuestMessage::Started { .. }),
            "{message:?}"
        );
        guest
    }

    pub fn send(&self, message: &HostMessage) {
        self.connected.send(message);
    }

    /// Reads exactly `text` from the workload's output.
    pub fn wait_stdout(&mut self, text: &str) {
        let mut read = vec![0; text.len()];
        self.stdout.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8_lossy(&read), text);
    }

    pub fn close_stdout(&mut self) {
        // A socket of no use takes its place.
        let (unused, _) = UnixStream::pair().unwrap();
        drop(std::mem::replace(&mut self.stdout, unused));
    }

    /// Reads all output and the last message, and lets the guest go.
    pub fn finish(mut self) -> Outcome {
        let (stdout, stderr) = (read_all(self.stdout), read_all(self.stderr));
        let result = match self.connected.read() {
            GuestMessage::Exited(status) => Ok(status),
            GuestMessage::Failed(failure) => Err(failure),
            other => panic!("{other:?} instead of an end"),
        };
        self.connected.let_go();
        Outcome {
            result,
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    }

    /// Closes everything at once and waits for the guest's end.
    pub fn abandon(self) -> ProcessStatus {
        let Self { connected, .. } = self;
        drop((connected.control, connected.channel));
        let mut process = connected.process;
        process.wait().unwrap()
    }
}

impl Connected {
    pub fn send(&self, message: &HostMessage) {
        write_message(&self.control, message).unwrap();
    }

    /// Sends the first message and sees it through.
    pub fn run_with(mut self, message: &HostMessage) -> Outcome {
        self.send(message);
        // What fails before the streams are there says so on the control
        // connection.
        let failed = |message| match message {
            GuestMessage::Failed(failure) => Outcome {
                result: Err(failure),
                stdout: Vec::new(),
                stderr: Vec::new(),
            },
            other => panic!("{other:?} instead of a start"),
        };
        if !self.stream_is_next() {
            let outcome = failed(self.read());
            self.let_go();
            return outcome;
        }
        let mut guest = self.accept_streams(false);
        match guest.connected.read() {
            GuestMessage::Started { .. } => guest.finish(),
            other => {
                let outcome = failed(other);
                guest.connected.let_go();
                outcome
            }
        }
    }

    /// Waits until the guest connects a stream or says something.
    fn stream_is_next(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [
            PollFd::new(&self.channel, PollFlags::IN),
            PollFd::new(&self.control, PollFlags::IN),
        ];
        poll(&mut fds, None).unwrap();
        !fds[0].revents().is_empty()
    }

    fn accept_streams(self, stdin: bool) -> Guest {
        let accept = |port| accept(&self.channel, port).unwrap();
        Guest {
            stdin: stdin.then(|| accept(STDIN_PORT)),
            stdout: accept(STDOUT_PORT),
            stderr: accept(STDERR_PORT),
            connected: self,
        }
    }

    fn read(&mut self) -> GuestMessage {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return message;
            }
            let n = self.control.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "the guest closed the control connection");
            self.decoder.push(&buffer[..n]);
        }
    }

    fn let_go(mut self) {
        self.control.shutdown(Shutdown::Both).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

fn read_all(mut from: UnixStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// The next connection of the guest, which must be to `port`.
fn accept(channel: &OwnedFd, port: u32) -> Option<UnixStream> {
    let mut text = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let expected = format!("{{\"port\":{port}}}");
    assert_eq!(String::from_utf8_lossy(&text[..received.bytes]), expected);
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next().map(Into::into),
        _ => None,
    })
}
