//! The framing of the control connection.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message, in bytes. A command line and an environment are at most
/// 2 MiB together on Linux (`execve(2)`, `ARG_MAX`); JSON may double that.
pub const MAX_MESSAGE_BYTES: u32 = 4 << 20;

/// Why a message was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed or ended inside a message.
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

/// Reads one message; `None` if the peer closed the connection between two.
pub fn read_message<T: DeserializeOwned>(mut from: impl Read) -> Result<Option<T>, WireError> {
    let mut header = [0; 4];
    let first = loop {
        match from.read(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[first..])?;
    let length = u32::from_le_bytes(header);
    if length > MAX_MESSAGE_BYTES {
        return Err(WireError::TooLong(length as usize));
    }
    // Grown by what arrives, not by what was announced.
    let mut body = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExitStatus, GuestMessage};

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        let mut bytes = Vec::new();
        let message = GuestMessage::Exited(ExitStatus::Code(7));
        write_message(&mut bytes, &message).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read_message(&mut from).unwrap(), Some(message));
        assert_eq!(read_message::<GuestMessage>(&mut from).unwrap(), None);
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_it_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        let result = read_message::<GuestMessage>(bytes.as_slice());
        assert!(matches!(result, Err(WireError::TooLong(_))));
    }

    #[test]
    fn a_connection_cut_inside_a_message_is_an_error() {
        for bytes in [&[5, 0][..], &[5, 0, 0, 0, b'"'][..]] {
            let result = read_message::<GuestMessage>(bytes);
            assert!(matches!(result, Err(WireError::Io(_))), "{bytes:?}");
        }
    }
}
