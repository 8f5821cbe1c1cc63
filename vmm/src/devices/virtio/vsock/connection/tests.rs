//! One connection between a guest that follows a script and an agent that is a
//! socket.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::super::packet::TYPE_STREAM;
use super::*;

const GUEST_BUFFER: u32 = 1000;

fn header(operation: Operation, flags: u32) -> Header {
    Header {
        source_cid: 3,
        destination_cid: 2,
        source_port: 1,
        destination_port: 2,
        length: 0,
        socket_type: TYPE_STREAM,
        operation: Some(operation),
        flags,
        buffer_bytes: GUEST_BUFFER,
        forwarded_bytes: 0,
    }
}

/// A connection, the agent's end of it, and what the guest knows.
struct Pair {
    connection: Connection,
    agent: UnixStream,
    /// What the guest has received and taken out of its buffer.
    received: Vec<u8>,
    forwarded_bytes: u32,
}

type Step = Result<(), Violation>;

impl Pair {
    fn asked_by_guest() -> Self {
        let (ours, agent) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        agent.set_nonblocking(true).unwrap();
        let request = header(Operation::Request, 0);
        Self {
            connection: Connection::from_guest(ours, &request),
            agent,
            received: Vec::new(),
            forwarded_bytes: 0,
        }
    }

    fn established() -> Self {
        let mut pair = Self::asked_by_guest();
        assert_eq!(pair.next(4096), Ok(Some((Operation::Response, 0, 0))));
        pair
    }

    fn tell(&mut self, operation: Operation, flags: u32) -> Step {
        let header = Header {
            forwarded_bytes: self.forwarded_bytes,
            ..header(operation, flags)
        };
        self.connection.take(&header, operation, None)
    }

    fn send(&mut self, data: &mut [u8]) -> Step {
        let header = Header {
            forwarded_bytes: self.forwarded_bytes,
            length: data.len() as u32,
            ..header(Operation::ReadWrite, 0)
        };
        let slice = VolatileSlice::from(data);
        self.connection
            .take(&header, Operation::ReadWrite, Some(&slice))
    }

    /// Lets the guest take one packet into a buffer of `room` bytes.
    fn next(&mut self, room: usize) -> Result<Option<(Operation, u32, u32)>, Violation> {
        let mut buffer = vec![0; room];
        let slice = VolatileSlice::from(buffer.as_mut_slice());
        let packet = self.connection.next_packet(&slice)?;
        if let Some((_, _, length)) = packet {
            self.received.extend(&buffer[..length as usize]);
            self.connection.tell_credit();
        }
        Ok(packet)
    }

    fn agent_reads(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        match self.agent.read(&mut bytes) {
            Ok(length) => bytes.truncate(length),
            Err(_) => bytes.clear(),
        }
        bytes
    }
}

#[test]
fn a_full_buffer_takes_no_more_memory_than_the_guest_was_promised() {
    // However it fills up: doubling from these sizes would go past the end.
    for piece in [4096, 20_000, 43_000, 65_536] {
        let mut pair = Pair::established();
        let mut data = vec![7; piece];
        while pair.connection.buffer.len() + piece <= BUFFER_BYTES as usize {
            pair.send(&mut data).unwrap();
            assert!(pair.connection.buffer.capacity() <= BUFFER_BYTES as usize);
        }
        assert!(pair.connection.buffer.len() > BUFFER_BYTES as usize / 2);
    }
}

#[test]
fn a_guests_request_is_answered_first() {
    let mut pair = Pair::asked_by_guest();
    pair.agent.write_all(b"early").unwrap();
    assert!(pair.connection.has_packet());
    assert_eq!(pair.next(100), Ok(Some((Operation::Response, 0, 0))));
    assert_eq!(pair.next(100), Ok(Some((Operation::ReadWrite, 0, 5))));
    assert_eq!(pair.received, b"early");
    assert_eq!(pair.next(100), Ok(None));
    assert!(!pair.connection.has_packet());
}

#[test]
fn an_agents_request_waits_for_the_guests_answer() {
    let (ours, mut agent) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    agent.write_all(b"early").unwrap();
    let mut connection = Connection::from_agent(ours);
    let mut buffer = [0; 100];
    let slice = VolatileSlice::from(&mut buffer[..]);
    let request = Ok(Some((Operation::Request, 0, 0)));
    assert_eq!(connection.next_packet(&slice), request);
    assert_eq!(connection.next_packet(&slice), Ok(None));
    assert!(!connection.has_packet());
    let answer = header(Operation::Response, 0);
    connection.take(&answer, Operation::Response, None).unwrap();
    let data = Ok(Some((Operation::ReadWrite, 0, 5)));
    assert_eq!(connection.next_packet(&slice), data);
}

#[test]
fn what_makes_no_sense_is_a_violation() {
    // Before the request is answered, in either direction.
    let mut pair = Pair::asked_by_guest();
    assert_eq!(pair.send(&mut [1]), Err(Violation));
    let (ours, _agent) = UnixStream::pair().unwrap();
    let mut connection = Connection::from_agent(ours);
    for operation in [Operation::Response, Operation::Shutdown, Operation::Request] {
        let header = header(operation, 3);
        assert_eq!(connection.take(&header, operation, None), Err(Violation));
    }
    // Afterwards.
    let mut pair = Pair::established();
    for operation in [Operation::Request, Operation::Response, Operation::Reset] {
        assert_eq!(pair.tell(operation, 0), Err(Violation), "{operation:?}");
    }
    // After the guest's own end.
    pair.tell(Operation::Shutdown, SHUTDOWN_SEND).unwrap();
    assert_eq!(pair.send(&mut [1]), Err(Violation));
}

#[test]
fn an_agent_that_hangs_up_is_told_to_a_guest_that_listens_and_to_one_that_sends() {
    let mut pair = Pair::established();
    let gone = std::mem::replace(&mut pair.agent, UnixStream::pair().unwrap().0);
    drop(gone);
    let end = Ok(Some((Operation::Shutdown, SHUTDOWN_SEND, 0)));
    assert_eq!(pair.next(100), end);
    assert_eq!(pair.next(100), Ok(None));
    assert_eq!(pair.send(&mut [1]), Err(Violation));
}

#[test]
fn the_guests_end_reaches_the_agent_after_the_last_byte() {
    let mut pair = Pair::established();
    // More than the socket takes at once.
    let mut data = vec![7; 200_000];
    let mut sent = 0;
    while pair.connection.buffer.is_empty() && sent < 1 << 24 {
        pair.send(&mut data).unwrap();
        sent += data.len();
    }
    assert!(!pair.connection.buffer.is_empty(), "the socket takes all");
    pair.tell(Operation::Shutdown, SHUTDOWN_SEND).unwrap();
    assert!(!pair.connection.finished());
    let mut read = 0;
    loop {
        let bytes = pair.agent_reads();
        if bytes.is_empty() && pair.connection.buffer.is_empty() {
            break;
        }
        assert!(bytes.iter().all(|byte| *byte == 7));
        read += bytes.len();
        pair.connection.flush().unwrap();
    }
    assert_eq!(read, sent);
    assert_eq!(pair.agent.read(&mut [0; 1]).unwrap(), 0, "the end");
    // The other direction is open still.
    pair.agent.write_all(b"answer").unwrap();
    pair.connection.set_readable();
    while !pair.received.ends_with(b"answer") {
        assert!(pair.next(100).unwrap().is_some());
    }
    pair.tell(Operation::Shutdown, SHUTDOWN_RECEIVE).unwrap();
    assert!(pair.connection.finished());
}

#[test]
fn a_credit_request_is_answered_once() {
    let mut pair = Pair::established();
    assert!(!pair.connection.has_packet() || pair.next(100) == Ok(None));
    pair.tell(Operation::CreditRequest, 0).unwrap();
    assert!(pair.connection.has_packet());
    assert_eq!(pair.next(100), Ok(Some((Operation::CreditUpdate, 0, 0))));
    assert_eq!(pair.next(100), Ok(None));
}

#[test]
fn a_guest_that_claims_to_have_taken_more_than_it_got_gets_nothing() {
    let mut pair = Pair::established();
    pair.agent.write_all(b"data").unwrap();
    pair.forwarded_bytes = 5000;
    pair.tell(Operation::CreditUpdate, 0).unwrap();
    assert_eq!(pair.connection.credit(), 0);
    assert_eq!(pair.next(100), Ok(None));
}

/// What may happen next.
#[derive(Debug, Clone)]
enum Event {
    /// The guest sends so many bytes.
    GuestSends(usize),
    /// The guest gives a buffer of so many bytes.
    GuestTakes(usize),
    /// The guest empties its buffer and says so.
    GuestReads,
    GuestEnds,
    GuestIsDeaf,
    GuestAsks,
    AgentSends(usize),
    AgentReads,
    AgentEnds,
    /// The socket to the agent is ready.
    Ready,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1_usize..70_000).prop_map(Event::GuestSends),
        6 => (1_usize..5000).prop_map(Event::GuestTakes),
        2 => Just(Event::GuestReads),
        1 => Just(Event::GuestEnds),
        1 => Just(Event::GuestIsDeaf),
        1 => Just(Event::GuestAsks),
        4 => (1_usize..5000).prop_map(Event::AgentSends),
        3 => Just(Event::AgentReads),
        1 => Just(Event::AgentEnds),
        4 => Just(Event::Ready),
    ]
}

/// Everything that either side has said, and the other has heard.
#[derive(Default)]
struct Ledger {
    guest_sent: u32,
    agent_heard: u32,
    agent_sent: u32,
    guest_ended: bool,
    guest_deaf: bool,
    agent_ended: bool,
}

/// Bytes of one side's stream from `position` on.
fn bytes(position: u32, length: usize) -> Vec<u8> {
    (position..).take(length).map(|n| (n % 251) as u8).collect()
}

impl Ledger {
    /// Lets `event` happen; false: the connection is over.
    fn play(&mut self, pair: &mut Pair, event: &Event) -> bool {
        let result = match event {
            Event::GuestSends(length) => {
                // A guest keeps to its credit.
                let taken = pair.connection.tell_credit().1;
                let room = BUFFER_BYTES - self.guest_sent.wrapping_sub(taken);
                let length = (*length).min(room as usize);
                if self.guest_ended || length == 0 {
                    return true;
                }
                let mut data = bytes(self.guest_sent, length);
                self.guest_sent += length as u32;
                pair.send(&mut data)
            }
            Event::GuestTakes(room) => pair.next(*room).map(|_| ()),
            Event::GuestReads => {
                pair.forwarded_bytes = pair.received.len() as u32;
                pair.tell(Operation::CreditUpdate, 0)
            }
            Event::GuestEnds => {
                self.guest_ended = true;
                pair.tell(Operation::Shutdown, SHUTDOWN_SEND)
            }
            Event::GuestIsDeaf => {
                self.guest_deaf = true;
                pair.tell(Operation::Shutdown, SHUTDOWN_RECEIVE)
            }
            Event::GuestAsks => pair.tell(Operation::CreditRequest, 0),
            Event::AgentSends(length) => {
                if !self.agent_ended {
                    let data = bytes(self.agent_sent, *length);
                    self.agent_sent += pair.agent.write(&data).unwrap_or(0) as u32;
                }
                Ok(())
            }
            Event::AgentReads => {
                let read = pair.agent_reads();
                assert_eq!(read, bytes(self.agent_heard, read.len()));
                self.agent_heard += read.len() as u32;
                Ok(())
            }
            Event::AgentEnds => {
                self.agent_ended = true;
                pair.agent.shutdown(Shutdown::Write).unwrap();
                Ok(())
            }
            Event::Ready => {
                pair.connection.set_readable();
                pair.connection.flush()
            }
        };
        // A guest and an agent that keep to the rules are never reset.
        assert_eq!(result, Ok(()), "{event:?}");
        !pair.connection.finished()
    }
}

proptest! {
    #[test]
    fn bytes_arrive_in_order_within_credit_and_bounds_whatever_happens_when(
        events in proptest::collection::vec(any_event(), 1..150),
    ) {
        let mut pair = Pair::established();
        let mut ledger = Ledger::default();
        for event in &events {
            if !ledger.play(&mut pair, event) {
                break;
            }
            let in_flight = pair.received.len() as u32 - pair.forwarded_bytes;
            prop_assert!(in_flight <= GUEST_BUFFER, "{in_flight} past the credit");
            prop_assert!(pair.connection.buffer.len() <= BUFFER_BYTES as usize);
            prop_assert!(
                pair.received == bytes(0, pair.received.len()),
                "out of order after {event:?}"
            );
        }
        // Left to itself, all that was sent arrives.
        let rest = [
            Event::Ready,
            Event::AgentReads,
            Event::GuestReads,
            Event::GuestTakes(4096),
        ];
        for _ in 0..10_000 {
            let over = rest.iter().any(|event| !ledger.play(&mut pair, event));
            let heard = ledger.agent_heard == ledger.guest_sent
                && (ledger.guest_deaf || pair.received.len() as u32 == ledger.agent_sent);
            if over || heard {
                break;
            }
        }
        // What is in the socket outlives the connection.
        ledger.play(&mut pair, &Event::AgentReads);
        prop_assert_eq!(ledger.agent_heard, ledger.guest_sent);
        if !ledger.guest_deaf {
            prop_assert_eq!(pair.received.len() as u32, ledger.agent_sent);
        }
    }
}
