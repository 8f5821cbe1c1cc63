//! Who is asked: part of the agent that runs a microVM, in its one thread. It never
//! waits for a client or for the VMM.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, listen, recv,
    send, socket_with,
};
use vmm::control::{
    Answer, CONTROL_VERSION, Command, MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Outcome, Reply, Request,
};

use super::{Place, Verb};

/// Clients at once; more are turned away.
const MAX_CLIENTS: usize = 16;
/// Until they are accepted.
const BACKLOG: i32 = 16;

/// What the agent itself is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To have the workload end.
    Stop,
    /// To end the microVM.
    Kill,
}

/// Listens, and hands on.
#[derive(Debug)]
pub struct Server {
    place: Place,
    listener: OwnedFd,
    /// The VMM's control socket, until the VMM is gone.
    vmm: Option<OwnedFd>,
    clients: Vec<Client>,
    next_id: u64,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    /// The request to the VMM whose reply it waits for.
    waits_for: Option<u64>,
}

impl Server {
    /// Listens at `place` for what the VMM at the other end of `vmm` shall do.
    pub fn new(place: Place, vmm: OwnedFd) -> io::Result<Self> {
        place.create_directory()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        place.with_address(|address| bind(&listener, address))?;
        let server = Self {
            place,
            listener,
            vmm: Some(vmm),
            clients: Vec::new(),
            next_id: 1,
        };
        // Before anybody can connect.
        fs::set_permissions(server.place.path(), Permissions::from_mode(0o600))?;
        listen(&server.listener, BACKLOG)?;
        Ok(server)
    }

    /// What to wait for, in the order of [`Server::turn`].
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.socket.as_fd());
        std::iter::once(self.listener.as_fd())
            .chain(clients)
            .chain(self.vmm.as_ref().map(AsFd::as_fd))
    }

    /// Serves those of [`Server::descriptors`] that are ready. Returns what the agent has
    /// to do.
    pub fn turn(&mut self, ready: &[bool]) -> Vec<Asked> {
        let mut ready = ready.iter().copied();
        let accept = ready.next() == Some(true);
        let mut asked = Vec::new();
        // Their number is that of the clients when the descriptors were listed.
        let of_clients: Vec<bool> = ready.by_ref().take(self.clients.len()).collect();
        let old = std::mem::take(&mut self.clients);
        for (client, ready) in old.into_iter().zip(of_clients) {
            let client = match ready {
                true => self.serve(client, &mut asked),
                false => Some(client),
            };
            self.clients.extend(client);
        }
        if ready.next() == Some(true) {
            self.hear_vmm();
        }
        if accept {
            self.accept();
        }
        asked
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(&self.listener, flags) else {
            return;
        };
        let client = Client {
            socket,
            waits_for: None,
        };
        match self.clients.len() < MAX_CLIENTS {
            true => self.clients.push(client),
            false => client.answer(&Outcome::Error("too many ask at once".to_owned())),
        }
    }

    /// Reads what a client asks for. Returns it if it has to wait.
    fn serve(&mut self, mut client: Client, asked: &mut Vec<Asked>) -> Option<Client> {
        let mut bytes = [0; MAX_REQUEST_BYTES];
        let length = match recv(&client.socket, &mut bytes, RecvFlags::empty()) {
            Err(Errno::AGAIN | Errno::INTR) => return Some(client),
            Err(_) | Ok((0, _)) => return None,
            Ok((length, _)) => length,
        };
        if client.waits_for.is_some() {
            // One thing is asked at a time.
            return None;
        }
        let verb: Verb = match serde_json::from_slice(&bytes[..length]) {
            Ok(verb) => verb,
            Err(error) => {
                client.answer(&Outcome::Error(format!("this is no request: {error}")));
                return None;
            }
        };
        match verb.command() {
            Ok(command) => match self.send(command) {
                Ok(id) => {
                    client.waits_for = Some(id);
                    Some(client)
                }
                Err(error) => {
                    let reason = format!("the VMM cannot be asked: {error}");
                    client.answer(&Outcome::Error(reason));
                    None
                }
            },
            Err(Asked::Stop) => {
                // A guest that is paused would not hear of it.
                let _ = self.send(Command::Resume);
                asked.push(Asked::Stop);
                client.answer(&Outcome::Result(Answer::Done));
                None
            }
            Err(Asked::Kill) => {
                asked.push(Asked::Kill);
                client.answer(&Outcome::Result(Answer::Done));
                None
            }
        }
    }

    fn send(&mut self, command: Command) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            version: CONTROL_VERSION,
            id,
            command,
        };
        let vmm = self.vmm.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let bytes = serde_json::to_vec(&request)?;
        send(vmm, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(id)
    }

    /// Gives a reply to who waits for it; nobody does if it has gone.
    fn hear_vmm(&mut self) {
        let Some(vmm) = &self.vmm else { return };
        let mut bytes = [0; MAX_REPLY_BYTES];
        let length = match recv(vmm, &mut bytes, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) | Ok((0, _)) => {
                self.vmm = None;
                self.clients.clear();
                return;
            }
            Ok((length, _)) => length,
        };
        let Ok(reply) = serde_json::from_slice::<Reply>(&bytes[..length]) else {
            return;
        };
        let waits = |client: &Client| client.waits_for.is_some() && client.waits_for == reply.id;
        if let Some(index) = self.clients.iter().position(waits) {
            self.clients.swap_remove(index).answer(&reply.outcome);
        }
    }
}

impl Client {
    /// The last it hears.
    fn answer(self, outcome: &Outcome) {
        if let Ok(bytes) = serde_json::to_vec(outcome) {
            let _ = send(
                &self.socket,
                &bytes,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            );
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.place.path());
    }
}
