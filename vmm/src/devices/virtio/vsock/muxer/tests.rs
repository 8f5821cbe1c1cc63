//! All connections together, seen by a guest that sends anything.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::*;
use crate::vsock_channel::Message;

const GUEST: u64 = 3;

fn muxer() -> (Muxer, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, agent) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Muxer::new(GUEST, ours).unwrap(), agent)
}

/// A request from guest port 1 to host port 1024.
fn request() -> Header {
    Header {
        source_cid: GUEST,
        destination_cid: HOST_CID,
        source_port: 1,
        destination_port: 1024,
        length: 0,
        socket_type: TYPE_STREAM,
        operation: Some(Operation::Request),
        flags: 0,
        buffer_bytes: 4096,
        forwarded_bytes: 0,
    }
}

fn next(muxer: &mut Muxer) -> Option<(Header, Vec<u8>)> {
    let mut room = [0; 2048];
    let slice = VolatileSlice::from(&mut room[..]);
    let header = muxer.next_packet(&slice)?;
    let data = room[..header.length as usize].to_vec();
    Some((header, data))
}

fn operations(muxer: &mut Muxer) -> Vec<(Operation, u32)> {
    std::iter::from_fn(|| next(muxer))
        .map(|(header, _)| (header.operation.unwrap(), header.destination_port))
        .collect()
}

/// What the agent was offered.
fn offered(agent: &OwnedFd) -> Option<(u32, UnixStream)> {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(agent, buffers, &mut control, RecvFlags::DONTWAIT).ok()?;
    let message: Message = serde_json::from_slice(&bytes[..received.bytes]).unwrap();
    let stream = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Some((message.port, stream.unwrap().into()))
}

fn connect_guest(agent: &OwnedFd, port: u32) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let message = serde_json::to_vec(&Message { port }).unwrap();
    let fds = [theirs.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let buffers = [IoSlice::new(&message)];
    sendmsg(agent, &buffers, &mut control, SendFlags::empty()).unwrap();
    ours.set_nonblocking(true).unwrap();
    ours
}

#[test]
fn a_request_is_offered_to_the_agent_and_answered() {
    let (mut muxer, agent) = muxer();
    muxer.take(request(), None);
    let (port, mut stream) = offered(&agent).unwrap();
    assert_eq!(port, 1024);
    let (response, _) = next(&mut muxer).unwrap();
    assert_eq!(response.operation, Some(Operation::Response));
    assert_eq!(
        (response.source_cid, response.destination_cid),
        (HOST_CID, GUEST)
    );
    assert_eq!((response.source_port, response.destination_port), (1024, 1));
    assert!(response.buffer_bytes > 0);
    stream.write_all(b"hello").unwrap();
    muxer.poll(true);
    let (data, bytes) = next(&mut muxer).unwrap();
    assert_eq!(data.operation, Some(Operation::ReadWrite));
    assert_eq!(bytes, b"hello");
    assert!(next(&mut muxer).is_none());
    assert!(!muxer.has_packets());
}

#[test]
fn an_agents_connection_is_asked_of_the_guest_from_a_port_of_its_own() {
    let (mut muxer, agent) = muxer();
    let _streams = [connect_guest(&agent, 80), connect_guest(&agent, 80)];
    muxer.poll(true);
    let (first, second) = (next(&mut muxer).unwrap().0, next(&mut muxer).unwrap().0);
    for request in [first, second] {
        assert_eq!(request.operation, Some(Operation::Request));
        assert_eq!(request.destination_port, 80);
    }
    assert_ne!(first.source_port, second.source_port);
}

#[test]
fn a_guest_that_refuses_ends_the_agents_stream() {
    let (mut muxer, agent) = muxer();
    let mut stream = connect_guest(&agent, 80);
    muxer.poll(true);
    let (asked, _) = next(&mut muxer).unwrap();
    let refusal = Header {
        source_port: asked.destination_port,
        destination_port: asked.source_port,
        operation: Some(Operation::Reset),
        ..request()
    };
    muxer.take(refusal, None);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(!muxer.has_packets(), "a reset is not answered");
}

#[test]
fn without_a_driver_the_agents_connections_are_refused() {
    let (mut muxer, agent) = muxer();
    let mut stream = connect_guest(&agent, 80);
    muxer.poll(false);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(!muxer.has_packets());
}

#[test]
fn a_reset_of_the_device_ends_every_stream() {
    let (mut muxer, agent) = muxer();
    muxer.take(request(), None);
    let (_, mut theirs) = offered(&agent).unwrap();
    let mut ours = connect_guest(&agent, 80);
    muxer.poll(true);
    muxer.reset();
    for stream in [&mut theirs, &mut ours] {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert!(!muxer.has_packets());
    // The same ports are free again.
    muxer.take(request(), None);
    assert_eq!(operations(&mut muxer), [(Operation::Response, 1)]);
}

#[test]
fn without_an_agent_requests_are_refused() {
    let (mut muxer, agent) = muxer();
    drop(agent);
    muxer.poll(true);
    muxer.take(request(), None);
    assert_eq!(operations(&mut muxer), [(Operation::Reset, 1)]);
    // And its end is heard once, not for ever.
    muxer.poll(true);
    assert!(!muxer.has_packets());
}

#[test]
fn an_agent_that_does_not_read_refuses() {
    let (mut muxer, _agent) = muxer();
    rustix::net::sockopt::set_socket_send_buffer_size(&muxer.channel, 8192).unwrap();
    let mut refused = false;
    for source_port in 0..MAX_CONNECTIONS as u32 {
        muxer.take(
            Header {
                source_port,
                ..request()
            },
            None,
        );
        refused |= operations(&mut muxer)[0].0 == Operation::Reset;
    }
    assert!(refused, "a socket's queue has an end");
}

#[test]
fn packets_of_others_and_for_others_are_ignored() {
    let (mut muxer, agent) = muxer();
    for (source_cid, destination_cid) in [(4, 2), (2, 2), (0, 2), (3, 3), (3, 1), (3, u64::MAX)] {
        let header = Header {
            source_cid,
            destination_cid,
            ..request()
        };
        muxer.take(header, None);
        assert!(!muxer.has_packets(), "{source_cid} to {destination_cid}");
    }
    assert!(offered(&agent).is_none());
}

#[test]
fn what_belongs_to_no_connection_is_reset() {
    let (mut muxer, _agent) = muxer();
    use Operation::{CreditRequest, CreditUpdate, ReadWrite, Response, Shutdown};
    for operation in [Response, Shutdown, ReadWrite, CreditUpdate, CreditRequest] {
        let operation = Some(operation);
        muxer.take(
            Header {
                operation,
                ..request()
            },
            None,
        );
        assert_eq!(
            operations(&mut muxer),
            [(Operation::Reset, 1)],
            "{operation:?}"
        );
    }
    let reset = Some(Operation::Reset);
    muxer.take(
        Header {
            operation: reset,
            ..request()
        },
        None,
    );
    assert!(
        !muxer.has_packets(),
        "resets answering resets would never end"
    );
}

#[test]
fn what_is_not_understood_is_reset() {
    let (mut muxer, agent) = muxer();
    muxer.take(
        Header {
            operation: None,
            ..request()
        },
        None,
    );
    muxer.take(
        Header {
            socket_type: 2,
            ..request()
        },
        None,
    );
    assert_eq!(operations(&mut muxer), [(Operation::Reset, 1); 2]);
    assert!(offered(&agent).is_none());
}

#[test]
fn a_second_request_with_the_same_ports_ends_the_first() {
    let (mut muxer, agent) = muxer();
    muxer.take(request(), None);
    let (_, mut stream) = offered(&agent).unwrap();
    assert_eq!(operations(&mut muxer), [(Operation::Response, 1)]);
    muxer.take(request(), None);
    assert_eq!(operations(&mut muxer), [(Operation::Reset, 1)]);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn the_number_of_connections_is_bounded() {
    let (mut muxer, agent) = muxer();
    let mut streams = Vec::new();
    let mut answers = Vec::new();
    for source_port in 0..MAX_CONNECTIONS as u32 + 10 {
        muxer.take(
            Header {
                source_port,
                ..request()
            },
            None,
        );
        streams.extend(offered(&agent));
        answers.extend(operations(&mut muxer));
    }
    let accepted = answers.iter().filter(|(o, _)| *o == Operation::Response);
    assert_eq!(accepted.count(), MAX_CONNECTIONS);
    assert_eq!(streams.len(), MAX_CONNECTIONS);
    // One that ends makes room for another.
    let reset = Some(Operation::Reset);
    muxer.take(
        Header {
            operation: reset,
            ..request()
        },
        None,
    );
    let source_port = 5000;
    muxer.take(
        Header {
            source_port,
            ..request()
        },
        None,
    );
    assert_eq!(operations(&mut muxer), [(Operation::Response, 5000)]);
}

#[test]
fn connections_take_turns() {
    let (mut muxer, agent) = muxer();
    let mut streams = Vec::new();
    for source_port in 0..3 {
        muxer.take(
            Header {
                source_port,
                ..request()
            },
            None,
        );
        streams.extend(offered(&agent));
    }
    operations(&mut muxer);
    for (_, stream) in &mut streams {
        stream.write_all(&[0; 4096]).unwrap();
    }
    muxer.poll(true);
    // Each has two packets' worth and credit for it.
    let turns: Vec<u32> = operations(&mut muxer)
        .iter()
        .map(|(_, port)| *port)
        .collect();
    assert_eq!(turns.len(), 6);
    for turn in turns.chunks(3) {
        let mut ports = turn.to_vec();
        ports.sort_unstable();
        assert_eq!(ports, [0, 1, 2]);
    }
}

fn any_header() -> impl Strategy<Value = Header> {
    let operation = prop_oneof![
        Just(None),
        Just(Some(Operation::Request)),
        Just(Some(Operation::Request)),
        Just(Some(Operation::Response)),
        Just(Some(Operation::Reset)),
        Just(Some(Operation::Shutdown)),
        Just(Some(Operation::ReadWrite)),
        Just(Some(Operation::CreditUpdate)),
        Just(Some(Operation::CreditRequest)),
    ];
    let cids = prop_oneof![9 => Just((GUEST, HOST_CID)), 1 => (0_u64..5, 0_u64..5)];
    let ports = (
        0_u32..4,
        prop_oneof![9 => 1024_u32..1026, 1 => any::<u32>()],
    );
    let kind = prop_oneof![9 => Just(TYPE_STREAM), 1 => 0_u16..4];
    let credit = (any::<u32>(), any::<u32>());
    (operation, cids, ports, kind, 0_u32..8, credit).prop_map(
        |(operation, cids, ports, socket_type, flags, credit)| Header {
            source_cid: cids.0,
            destination_cid: cids.1,
            source_port: ports.0,
            destination_port: ports.1,
            length: 0,
            socket_type,
            operation,
            flags,
            buffer_bytes: credit.0,
            forwarded_bytes: credit.1,
        },
    )
}

#[test]
fn connections_that_end_before_the_guest_takes_a_packet_leave_nothing() {
    let (mut muxer, agent) = muxer();
    for port in 0..10_000 {
        let ask = Header {
            source_port: port,
            ..request()
        };
        let end = Header {
            operation: Some(Operation::Reset),
            ..ask
        };
        muxer.take(ask, None);
        drop(offered(&agent));
        muxer.take(end, None);
        assert_eq!(muxer.connections.len(), 0);
        assert_eq!(muxer.waiting.len(), 0);
    }
    assert!(!muxer.has_packets() && !muxer.answers_full());
}

#[test]
fn resets_that_the_guest_does_not_take_stop_at_a_bound() {
    let (mut muxer, _agent) = muxer();
    let stray = Header {
        operation: Some(Operation::ReadWrite),
        ..request()
    };
    for sent in 0..10_000 {
        assert_eq!(muxer.answers_full(), sent >= MAX_RESETS);
        muxer.take(stray, None);
        assert!(muxer.resets.len() <= MAX_RESETS + MAX_CONNECTIONS);
    }
    assert_eq!(muxer.resets.len(), MAX_RESETS + MAX_CONNECTIONS);
}

proptest! {
    /// Each packet of the guest's makes one answer at most, besides what its
    /// connections have to tell; and nothing is kept without bound.
    #[test]
    fn whatever_a_guest_sends_it_cannot_make_the_host_keep_more_and_more(
        headers in proptest::collection::vec(any_header(), 1..300),
        takes in proptest::collection::vec(any::<bool>(), 1..50),
        data in proptest::collection::vec(any::<u8>(), 1..2000),
    ) {
        let (mut muxer, agent) = muxer();
        let mut streams = Vec::new();
        let mut takes = takes.into_iter().cycle();
        let mut data = data;
        for mut header in headers {
            if muxer.answers_full() {
                break;
            }
            let sent = header.operation == Some(Operation::ReadWrite);
            header.length = if sent { data.len() as u32 } else { 0 };
            let slice = VolatileSlice::from(data.as_mut_slice());
            muxer.take(header, sent.then_some(&slice));
            streams.extend(offered(&agent));
            muxer.poll(true);
            if takes.next() == Some(true) {
                let answers = operations(&mut muxer);
                let resets = answers.iter().filter(|(o, _)| *o == Operation::Reset);
                prop_assert!(resets.count() <= MAX_RESETS + MAX_CONNECTIONS);
                prop_assert!(muxer.resets.is_empty());
            }
            prop_assert!(muxer.connections.len() <= MAX_CONNECTIONS);
            prop_assert!(muxer.resets.len() <= MAX_RESETS + MAX_CONNECTIONS);
            prop_assert!(muxer.waiting.len() <= muxer.connections.len());
        }
        operations(&mut muxer);
        // Nothing is left to say, and it knows.
        prop_assert!(!muxer.has_packets());
    }
}
