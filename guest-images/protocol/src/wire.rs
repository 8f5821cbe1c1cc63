//! The framing of the control connection.

use std::io::{self, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message, in bytes. A command line and an environment are at most
/// 2 MiB together on Linux (`execve(2)`, `ARG_MAX`); JSON may double that.
pub const MAX_MESSAGE_BYTES: u32 = 4 << 20;

/// Why a message was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed.
    #[error("the control connection failed")]
    Io(#[from] io::Error),
    /// The peer announced, or was to be sent, more than [`MAX_MESSAGE_BYTES`].
    #[error("a control message of {0} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    /// The bytes are not a message of this protocol.
    #[error("a control message could not be understood")]
    Malformed(#[from] serde_json::Error),
}

/// Writes one message.
pub fn write_message<T: Serialize>(mut to: impl Write, message: &T) -> Result<(), WireError> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|n| *n <= MAX_MESSAGE_BYTES)
        .ok_or(WireError::TooLong(body.len()))?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    to.write_all(&frame)?;
    Ok(())
}

/// Finds messages in the bytes of a connection, however they arrive, so that
/// both sides may read it from a poll loop.
///
/// It holds what was pushed and not yet taken: at most one message of
/// [`MAX_MESSAGE_BYTES`] and the last push, if the caller takes all there is
/// between two pushes.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Adds bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next message; `None` if more bytes are needed. After an error
    /// the connection is of no further use.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header);
        if length > MAX_MESSAGE_BYTES {
            return Err(WireError::TooLong(length as usize));
        }
        let Some(body) = rest.get(..length as usize) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body)?;
        self.bytes.drain(..4 + length as usize);
        Ok(Some(message))
    }

    /// Whether part of a message has arrived. If the connection ends now, it was
    /// cut.
    pub fn is_inside_message(&self) -> bool {
        !self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ExitStatus, GuestMessage, HostMessage};

    proptest! {
        #[test]
        fn messages_read_back_however_the_connection_cuts_them(
            signals in prop::collection::vec(any::<i32>(), 0..8),
            cut in 1usize..40,
        ) {
            let mut bytes = Vec::new();
            for signal in &signals {
                write_message(&mut bytes, &HostMessage::Signal(*signal)).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut read: Vec<HostMessage> = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    read.push(message);
                }
            }
            let sent: Vec<_> = signals.into_iter().map(HostMessage::Signal).collect();
            prop_assert_eq!(read, sent);
            prop_assert!(!decoder.is_inside_message());
        }

        #[test]
        fn arbitrary_bytes_never_panic_the_decoder(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message::<GuestMessage>() {}
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_it_arrives() {
        let mut decoder = Decoder::default();
        decoder.push(&(MAX_MESSAGE_BYTES + 1).to_le_bytes());
        let result = decoder.next_message::<GuestMessage>();
        assert!(matches!(result, Err(WireError::TooLong(_))));
    }

    #[test]
    fn a_cut_message_is_not_a_message() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &GuestMessage::Exited(ExitStatus::Code(7))).unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&bytes[..bytes.len() - 1]);
        assert!(matches!(decoder.next_message::<GuestMessage>(), Ok(None)));
        assert!(decoder.is_inside_message());
    }

    #[test]
    fn a_message_this_version_does_not_know_is_refused() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &"unheard of").unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let result = decoder.next_message::<GuestMessage>();
        assert!(matches!(result, Err(WireError::Malformed(_))));
    }
}
