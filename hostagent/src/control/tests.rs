//! Asking, with a VMM that is played.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
    socketpair,
};
use vmm::control::{Answer, CONTROL_VERSION, Outcome, Reply, Request};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn server(place: &Place) -> (Server, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, vmm) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Server::new(place.clone(), ours).unwrap(), vmm)
}

/// Serves until `done` says so of what the agent was asked.
fn serve(server: &mut Server, mut done: impl FnMut(&[Asked]) -> bool) {
    let mut all = Vec::new();
    while !done(&all) {
        let ready: Vec<bool> = {
            let mut fds: Vec<_> = server
                .descriptors()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            poll(&mut fds, None).unwrap();
            fds.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        all.extend(server.turn(&ready));
    }
}

/// Takes the next request as the VMM does, and answers.
fn obey(vmm: &OwnedFd, outcome: Outcome) -> Command {
    let mut bytes = [0; 4096];
    let (length, _) = recv(vmm, &mut bytes, RecvFlags::empty()).unwrap();
    let request: Request = serde_json::from_slice(&bytes[..length]).unwrap();
    let reply = Reply {
        version: CONTROL_VERSION,
        id: Some(request.id),
        outcome,
    };
    let bytes = serde_json::to_vec(&reply).unwrap();
    send(vmm, &bytes, SendFlags::empty()).unwrap();
    request.command
}

fn place(directory: &tempfile::TempDir) -> Place {
    Place::new(&directory.path().join("control"), "ab12")
}

#[test]
fn the_vmm_is_asked_and_its_outcome_told() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory);
    let (mut server, vmm) = server(&place);
    let metadata = fs::metadata(place.path()).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let asker = thread::spawn({
        let place = place.clone();
        move || {
            ask(&place, &Verb::Pause, PATIENCE).unwrap();
            let verb = Verb::SetBalloon { target_bytes: 1 };
            let refused = ask(&place, &verb, PATIENCE).unwrap_err().to_string();
            ask(&place, &Verb::Stop, PATIENCE).unwrap();
            refused
        }
    });
    let player = thread::spawn(move || {
        let no = Outcome::Error("no".to_owned());
        [
            obey(&vmm, Outcome::Result(Answer::Done)),
            obey(&vmm, no),
            obey(&vmm, Outcome::Result(Answer::Done)),
        ]
    });
    serve(&mut server, |asked| asked == [Asked::Stop]);
    assert_eq!(asker.join().unwrap(), "no");
    let expected = [
        Command::Pause,
        Command::SetBalloon { target_bytes: 1 },
        // Before the workload is told to end.
        Command::Resume,
    ];
    assert_eq!(player.join().unwrap(), expected);
    drop(server);
    assert!(!place.path().exists());
    let gone = ask(&place, &Verb::Pause, PATIENCE).unwrap_err();
    assert!(matches!(gone, AskError::Connect(_)));
}

#[test]
fn only_these_verbs_are_understood_and_a_silent_client_keeps_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory);
    let (mut server, _vmm) = server(&place);
    let flags = SocketFlags::CLOEXEC;
    let connected = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        place
            .with_address(|address| connect(&socket, address))
            .unwrap();
        socket
    };
    let _silent = connected();
    let asker = connected();
    send(&asker, b"\"quit\"", SendFlags::empty()).unwrap();
    let answered = || {
        let mut bytes = [0; 4096];
        let length = recv(&asker, &mut bytes, RecvFlags::DONTWAIT).ok()?.0;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    };
    let mut answer = None;
    serve(&mut server, |_| {
        answer = answer.take().or_else(answered);
        answer.is_some()
    });
    let answer = answer.unwrap();
    assert!(answer.contains("unknown variant `quit`"), "{answer}");
}

#[test]
fn a_vmm_that_is_gone_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(&directory);
    let (mut server, vmm) = server(&place);
    drop(vmm);
    let asker = thread::spawn({
        let place = place.clone();
        move || {
            let error = ask(&place, &Verb::Pause, PATIENCE).unwrap_err();
            ask(&place, &Verb::Kill, PATIENCE).unwrap();
            error
        }
    });
    serve(&mut server, |asked| asked == [Asked::Kill]);
    assert!(matches!(
        asker.join().unwrap(),
        AskError::Refused(_) | AskError::Answer(_)
    ));
}
