//! How the VMM asks the agent for parts of blobs that are not on this host yet.
//!
//! They speak over a Unix `SOCK_SEQPACKET` socket of a disk's ([`crate::spec::DiskSpec`]),
//! one message a packet, numbers little-endian. The VMM sends a [`Request`]; the agent
//! answers each with a [`Reply`], in any order, at once or when it has fetched what was
//! missing. After a reply that is not a failure the groups are in the blob's file. The VMM
//! verifies them all the same.
//!
//! The VMM has at most [`MAX_REQUESTS`] without an answer. The agent may close the socket:
//! then nothing that is missing can be had.

/// Requests without an answer, at most.
pub const MAX_REQUESTS: usize = 64;
/// Groups of 16 KiB in one request, at most: 16 MiB.
pub const MAX_GROUPS: u32 = 1024;

/// Asks for groups of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which request, for the reply.
    pub id: u32,
    /// Which of the disk's extents the blob is.
    pub extent: u32,
    /// The first group.
    pub first_group: u64,
    /// How many, 1 to [`MAX_GROUPS`].
    pub groups: u32,
}

/// Answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Which.
    pub id: u32,
    /// Whether the groups are there now; if not, the agent has told its user why.
    pub present: bool,
}

impl Request {
    /// The length of the message in bytes.
    pub const BYTES: usize = 20;

    /// The message.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.extent.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first_group.to_le_bytes());
        bytes[16..].copy_from_slice(&self.groups.to_le_bytes());
        bytes
    }

    /// Reads a message; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let request = Self {
            id: number(0),
            extent: number(4),
            first_group: u64::from(number(8)) | u64::from(number(12)) << 32,
            groups: number(16),
        };
        (1..=MAX_GROUPS)
            .contains(&request.groups)
            .then_some(request)
    }
}

impl Reply {
    /// The length of the message in bytes.
    pub const BYTES: usize = 8;

    /// The message.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[4..].copy_from_slice(&u32::from(self.present).to_le_bytes());
        bytes
    }

    /// Reads a message; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, present, 0, 0, 0] = *bytes else {
            return None;
        };
        Some(Self {
            id: u32::from_le_bytes([a, b, c, d]),
            present: match present {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_survive_being_written_and_read(
            id: u32, extent: u32, first_group: u64, groups in 1..=MAX_GROUPS, present: bool,
        ) {
            let request = Request { id, extent, first_group, groups };
            prop_assert_eq!(Request::decode(&request.encode()), Some(request));
            let reply = Reply { id, present };
            prop_assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }

        #[test]
        fn any_bytes_are_a_message_or_are_not(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode().to_vec(), bytes.clone());
            }
            if let Some(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(reply.encode().to_vec(), bytes);
            }
        }
    }
}
