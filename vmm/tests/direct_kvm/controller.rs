//! The agent's end of the control socket.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use vmm::control::{
    Answer, CONTROL_VERSION, Command, MAX_REPLY_BYTES, Outcome, Reply, Request, RunState, Status,
    VcpuState,
};

/// A VMM that has not answered by then never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends requests and takes replies.
pub struct Controller {
    socket: OwnedFd,
    next_id: u64,
}

impl Controller {
    pub fn new(socket: OwnedFd) -> Self {
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE)).unwrap();
        Self { socket, next_id: 1 }
    }

    /// Sends any bytes, waiting for room.
    #[track_caller]
    pub fn send_bytes(&self, bytes: &[u8]) {
        self.try_send(bytes, SendFlags::NOSIGNAL).unwrap();
    }

    pub fn try_send(&self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        rustix::net::send(&self.socket, bytes, flags)
    }

    /// Sends a request; returns its id.
    #[track_caller]
    pub fn send(&mut self, command: Command) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            version: CONTROL_VERSION,
            id,
            command,
        };
        self.send_bytes(&serde_json::to_vec(&request).unwrap());
        id
    }

    /// Waits until there is a reply, which stays unread.
    #[track_caller]
    pub fn wait_readable(&self) {
        crate::machine::wait_readable(&self.socket);
    }

    /// Waits for the next reply.
    #[track_caller]
    pub fn receive(&self) -> Reply {
        let mut bytes = [0; MAX_REPLY_BYTES];
        let flags = RecvFlags::TRUNC;
        let (_, length) = rustix::net::recv(&self.socket, &mut bytes, flags).unwrap();
        assert!(length <= MAX_REPLY_BYTES, "a reply of {length} bytes");
        let reply: Reply = serde_json::from_slice(&bytes[..length]).unwrap();
        assert_eq!(reply.version, CONTROL_VERSION);
        reply
    }

    /// Sends a request and waits for its reply.
    #[track_caller]
    pub fn ask(&mut self, command: Command) -> Outcome {
        let id = self.send(command);
        let reply = self.receive();
        assert_eq!(reply.id, Some(id), "{reply:?}");
        reply.outcome
    }

    /// Sends a request that must be obeyed.
    #[track_caller]
    pub fn command(&mut self, command: Command) {
        assert_eq!(self.ask(command), Outcome::Result(Answer::Done));
    }

    /// Sends a request that must be refused, for a reason with all of `parts`.
    #[track_caller]
    pub fn refused(&mut self, command: Command, parts: &[&str]) {
        match self.ask(command) {
            Outcome::Error(reason) => {
                assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn status(&mut self) -> Status {
        match self.ask(Command::Status) {
            Outcome::Result(Answer::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Pauses, and checks that the status says so.
    #[track_caller]
    pub fn pause(&mut self) {
        self.command(Command::Pause);
        let status = self.status();
        assert_eq!(status.state, RunState::Paused);
        assert!(
            status.vcpus.iter().all(|vcpu| *vcpu == VcpuState::Paused),
            "{status:?}"
        );
    }

    /// Sends no more; still reads.
    pub fn close_writing(&self) {
        rustix::net::shutdown(&self.socket, Shutdown::Write).unwrap();
    }
}
