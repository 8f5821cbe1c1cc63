//! One stream between a port of the guest and a Unix socket of the agent.
//!
//! Credit (virtio 1.3, section 5.10.6.3): each side says how much buffer it has
//! and how much it has taken out of it; the other never sends more than fits.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vm_memory::io::{ReadVolatile, WriteVolatile};
use vm_memory::{Bytes, VolatileMemoryError, VolatileSlice};

use super::packet::{Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// What the guest may send before the agent has taken it: memory this
/// connection may cost the host.
pub const BUFFER_BYTES: u32 = 256 << 10;

/// The connection asked of the device something that no peer may: it is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation;

/// How far the connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The agent wants it; the guest has not been asked.
    Asking,
    /// The guest has been asked and has not answered.
    Asked,
    /// The guest wanted it and has not been answered.
    Accepting,
    /// Data flows.
    Established,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    state: State,

    /// From the guest, on its way to the agent.
    buffer: VecDeque<u8>,
    /// How much has gone to the agent, modulo 2³².
    forwarded_bytes: u32,
    /// The value of `forwarded_bytes` that the guest last heard.
    told_forwarded_bytes: u32,
    credit_asked: bool,

    /// How much has gone to the guest, modulo 2³².
    sent_bytes: u32,
    guest_buffer_bytes: u32,
    guest_forwarded_bytes: u32,

    /// The stream may have bytes, or its end, for the guest.
    readable: bool,
    /// The agent will send no more, and the guest has not heard it.
    end_to_tell: bool,
    /// The agent will send no more.
    agent_ended: bool,
    /// The guest will send no more; the stream is closed after the buffer.
    guest_ended: bool,
    /// The guest takes no more.
    guest_deaf: bool,
}

impl Connection {
    fn new(stream: UnixStream, state: State) -> Self {
        Self {
            stream,
            state,
            buffer: VecDeque::new(),
            forwarded_bytes: 0,
            told_forwarded_bytes: 0,
            credit_asked: false,
            sent_bytes: 0,
            guest_buffer_bytes: 0,
            guest_forwarded_bytes: 0,
            readable: true,
            end_to_tell: false,
            agent_ended: false,
            guest_ended: false,
            guest_deaf: false,
        }
    }

    /// A connection the agent asked for. The stream must not block.
    pub fn from_agent(stream: UnixStream) -> Self {
        Self::new(stream, State::Asking)
    }

    /// A connection the guest asked for with `request`.
    pub fn from_guest(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, State::Accepting);
        connection.hear_credit(request);
        connection
    }

    /// The stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The stream may have something to read.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    fn hear_credit(&mut self, header: &Header) {
        self.guest_buffer_bytes = header.buffer_bytes;
        self.guest_forwarded_bytes = header.forwarded_bytes;
    }

    /// How much the guest has room for.
    fn credit(&self) -> u32 {
        let in_flight = self.sent_bytes.wrapping_sub(self.guest_forwarded_bytes);
        self.guest_buffer_bytes.saturating_sub(in_flight)
    }

    /// Takes a packet of the guest's.
    pub fn take(
        &mut self,
        header: &Header,
        operation: Operation,
        data: Option<&VolatileSlice>,
    ) -> Result<(), Violation> {
        self.hear_credit(header);
        match (operation, self.state) {
            (Operation::Response, State::Asked) => {
                self.state = State::Established;
                Ok(())
            }
            (Operation::ReadWrite, State::Established) if !self.guest_ended => match data {
                Some(data) => self.take_data(data),
                None => Ok(()),
            },
            (Operation::Shutdown, State::Established) => {
                if header.flags & SHUTDOWN_RECEIVE != 0 {
                    self.guest_deaf = true;
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                if header.flags & SHUTDOWN_SEND != 0 {
                    self.guest_ended = true;
                    self.flush()?;
                }
                Ok(())
            }
            (Operation::CreditUpdate, _) => Ok(()),
            (Operation::CreditRequest, _) => {
                self.credit_asked = true;
                Ok(())
            }
            _ => Err(Violation),
        }
    }

    fn take_data(&mut self, data: &VolatileSlice) -> Result<(), Violation> {
        let mut rest = *data;
        if self.buffer.is_empty() {
            match self.stream.write_volatile(&rest) {
                Ok(written) => {
                    self.forwarded_bytes = self.forwarded_bytes.wrapping_add(written as u32);
                    rest = rest.offset(written).map_err(|_| Violation)?;
                }
                Err(VolatileMemoryError::IOError(e)) if would_block(&e) => {}
                // The agent is gone: there is nobody to send to.
                Err(_) => return Err(Violation),
            }
        }
        // A guest that keeps to its credit never gets here with too much.
        if self.buffer.len() + rest.len() > BUFFER_BYTES as usize {
            return Err(Violation);
        }
        // By doubling, but never past what is accounted for.
        let needed = self.buffer.len() + rest.len();
        if needed > self.buffer.capacity() {
            let capacity = needed.max(2 * self.buffer.capacity());
            let capacity = capacity.min(BUFFER_BYTES as usize);
            self.buffer.reserve_exact(capacity - self.buffer.len());
        }
        let mut copy = vec![0; rest.len()];
        rest.read_slice(&mut copy, 0).map_err(|_| Violation)?;
        self.buffer.extend(copy);
        Ok(())
    }

    /// Sends to the agent what it takes now, and the end after the last byte.
    pub fn flush(&mut self) -> Result<(), Violation> {
        while !self.buffer.is_empty() {
            match rustix::io::write(&self.stream, self.buffer.as_slices().0)
                .map_err(io::Error::from)
            {
                Ok(written) => {
                    self.buffer.drain(..written);
                    self.forwarded_bytes = self.forwarded_bytes.wrapping_add(written as u32);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if would_block(&e) => return Ok(()),
                Err(_) => return Err(Violation),
            }
        }
        // The memory of a burst is not kept for the life of the connection.
        self.buffer.shrink_to(0);
        if self.guest_ended {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Both directions are done: the guest is owed a reset, and all is over.
    pub fn finished(&self) -> bool {
        self.guest_ended && self.guest_deaf && self.buffer.is_empty()
    }

    fn owes_credit(&self) -> bool {
        // Early enough that a guest with a full pipe need not stop, seldom
        // enough that not every packet is answered with one.
        let unheard = self.forwarded_bytes.wrapping_sub(self.told_forwarded_bytes);
        self.credit_asked || unheard >= BUFFER_BYTES / 4
    }

    /// Whether there is something to tell or send the guest.
    pub fn has_packet(&self) -> bool {
        match self.state {
            State::Asking | State::Accepting => true,
            State::Asked => false,
            State::Established => {
                self.owes_credit() || self.end_to_tell || (self.may_read() && self.credit() > 0)
            }
        }
    }

    fn may_read(&self) -> bool {
        self.readable && !self.agent_ended && !self.guest_deaf
    }

    /// The next packet for the guest: operation, flags and bytes of payload,
    /// which are in `room` already. `None`: nothing after all. `room` must not
    /// be empty.
    pub fn next_packet(
        &mut self,
        room: &VolatileSlice,
    ) -> Result<Option<(Operation, u32, u32)>, Violation> {
        match self.state {
            State::Asking => {
                self.state = State::Asked;
                return Ok(Some((Operation::Request, 0, 0)));
            }
            State::Accepting => {
                self.state = State::Established;
                return Ok(Some((Operation::Response, 0, 0)));
            }
            State::Asked => return Ok(None),
            State::Established => {}
        }
        if self.may_read() && self.credit() > 0 {
            let length = self.read_into(room)?;
            if length > 0 {
                return Ok(Some((Operation::ReadWrite, 0, length)));
            }
        }
        if self.end_to_tell {
            self.end_to_tell = false;
            return Ok(Some((Operation::Shutdown, SHUTDOWN_SEND, 0)));
        }
        if self.owes_credit() {
            return Ok(Some((Operation::CreditUpdate, 0, 0)));
        }
        Ok(None)
    }

    fn read_into(&mut self, room: &VolatileSlice) -> Result<u32, Violation> {
        let limit = room.len().min(self.credit() as usize);
        let mut room = room.subslice(0, limit).map_err(|_| Violation)?;
        let result = loop {
            match self.stream.read_volatile(&mut room) {
                Err(VolatileMemoryError::IOError(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match result {
            Ok(0) => {
                self.agent_ended = true;
                self.end_to_tell = true;
                Ok(0)
            }
            Ok(length) => {
                let length = length as u32;
                self.sent_bytes = self.sent_bytes.wrapping_add(length);
                Ok(length)
            }
            Err(VolatileMemoryError::IOError(e)) if would_block(&e) => {
                self.readable = false;
                Ok(0)
            }
            Err(_) => Err(Violation),
        }
    }

    /// What every packet of this connection tells: buffer and bytes forwarded.
    pub fn tell_credit(&mut self) -> (u32, u32) {
        self.told_forwarded_bytes = self.forwarded_bytes;
        self.credit_asked = false;
        (BUFFER_BYTES, self.forwarded_bytes)
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests;
