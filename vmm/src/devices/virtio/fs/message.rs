//! vhost-user messages, from a front end and back to it ("Vhost-user Protocol", QEMU's
//! documentation of interoperation). Numbers are in the byte order of the machine.

use std::fmt;

/// A ring feature bit by which a backend says that it knows [`protocol`] features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Bits of the protocol's own features.
pub mod protocol {
    /// It tells how many queues there can be.
    pub const MQ: u64 = 1 << 0;
    /// It answers each request that asks for an answer.
    pub const REPLY_ACK: u64 = 1 << 3;
}

/// What a front end asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the protocol's own names")]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
}

impl Request {
    /// Whether its answer says only if it was obeyed, by 0.
    pub fn is_acknowledged(self) -> bool {
        !matches!(
            self,
            Self::GetFeatures | Self::GetProtocolFeatures | Self::GetQueueNum | Self::GetVringBase
        )
    }
}

impl fmt::Display for Request {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            Self::GetFeatures => "VHOST_USER_GET_FEATURES",
            Self::SetFeatures => "VHOST_USER_SET_FEATURES",
            Self::SetOwner => "VHOST_USER_SET_OWNER",
            Self::SetMemTable => "VHOST_USER_SET_MEM_TABLE",
            Self::SetVringNum => "VHOST_USER_SET_VRING_NUM",
            Self::SetVringAddr => "VHOST_USER_SET_VRING_ADDR",
            Self::SetVringBase => "VHOST_USER_SET_VRING_BASE",
            Self::GetVringBase => "VHOST_USER_GET_VRING_BASE",
            Self::SetVringKick => "VHOST_USER_SET_VRING_KICK",
            Self::SetVringCall => "VHOST_USER_SET_VRING_CALL",
            Self::GetProtocolFeatures => "VHOST_USER_GET_PROTOCOL_FEATURES",
            Self::SetProtocolFeatures => "VHOST_USER_SET_PROTOCOL_FEATURES",
            Self::GetQueueNum => "VHOST_USER_GET_QUEUE_NUM",
            Self::SetVringEnable => "VHOST_USER_SET_VRING_ENABLE",
        })
    }
}

/// Flags: the version in the lowest two bits, then what kind of message it is.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Request, flags and size of the body, 32 bits each.
pub const HEADER_BYTES: usize = 12;
/// All replies asked for here are of 64 bits, or of two numbers of 32.
pub const REPLY_BYTES: usize = HEADER_BYTES + 8;
/// The longest message here is the table of two regions of memory.
const MAX_MESSAGE_BYTES: usize = HEADER_BYTES + 8 + 2 * 32;

/// A message on its way to a backend, in place: the threads that send it allocate
/// nothing.
pub struct Message {
    bytes: [u8; MAX_MESSAGE_BYTES],
    length: usize,
}

impl Message {
    /// A request without a body.
    pub fn new(request: Request) -> Self {
        let mut message = Self {
            bytes: [0; MAX_MESSAGE_BYTES],
            length: 0,
        };
        for number in [request as u32, VERSION, 0] {
            message.append(&number.to_ne_bytes());
        }
        message
    }

    /// A request with a body of one number.
    pub fn with_number(request: Request, number: u64) -> Self {
        Self::new(request).number(number)
    }

    /// A request with a body that tells `number` of queue `index`
    /// (`struct vhost_vring_state`).
    pub fn of_queue(request: Request, index: u32, number: u32) -> Self {
        let mut message = Self::new(request);
        message.append(&index.to_ne_bytes());
        message.append(&number.to_ne_bytes());
        message.sized()
    }

    /// Appends a number to the body.
    pub fn number(mut self, number: u64) -> Self {
        self.append(&number.to_ne_bytes());
        self.sized()
    }

    /// Asks for an answer where the protocol knows none ([`protocol::REPLY_ACK`]).
    pub fn acknowledged(mut self) -> Self {
        self.bytes[4..8].copy_from_slice(&(VERSION | NEED_REPLY).to_ne_bytes());
        self
    }

    /// What goes over the socket.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn append(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
    }

    fn sized(mut self) -> Self {
        let size = (self.length - HEADER_BYTES) as u32;
        self.bytes[8..12].copy_from_slice(&size.to_ne_bytes());
        self
    }
}

/// The body of the reply to `request`; `None` if that is not what `bytes` are.
pub fn reply_to(request: Request, bytes: &[u8; REPLY_BYTES]) -> Option<u64> {
    let [a, b, c, d, rest @ ..] = bytes;
    let found = u32::from_ne_bytes([*a, *b, *c, *d]);
    let [a, b, c, d, rest @ ..] = rest;
    let flags = u32::from_ne_bytes([*a, *b, *c, *d]);
    let [a, b, c, d, body @ ..] = rest;
    let size = u32::from_ne_bytes([*a, *b, *c, *d]);
    let good = found == request as u32
        && flags & VERSION_MASK == VERSION
        && flags & REPLY != 0
        && size as usize == REPLY_BYTES - HEADER_BYTES;
    good.then_some(u64::from_ne_bytes(*body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_a_header_and_a_body_of_the_size_it_tells() {
        let message = Message::of_queue(Request::SetVringNum, 1, 256).acknowledged();
        let words: Vec<u32> = message
            .as_bytes()
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [8, 9, 8, 1, 256]);
        assert_eq!(Message::new(Request::SetOwner).as_bytes().len(), 12);
    }

    proptest! {
        #[test]
        fn only_a_reply_to_the_request_is_taken(words in prop::array::uniform5(0_u32..20)) {
            let mut bytes = [0; REPLY_BYTES];
            for (place, word) in bytes.chunks_mut(4).zip(words) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
            let [request, flags, size, low, high] = words;
            let good = request == 11 && flags & 7 == 5 && size == 8;
            let body = u64::from(high) << 32 | u64::from(low);
            prop_assert_eq!(reply_to(Request::GetVringBase, &bytes), good.then_some(body));
        }
    }
}
