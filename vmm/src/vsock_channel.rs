//! How the agent and the VMM hand each other the host ends of vsock connections.
//!
//! Both hold one end of a Unix `SOCK_SEQPACKET` socket. Each message is one
//! JSON [`Message`] with exactly one descriptor attached (`SCM_RIGHTS`): a
//! connected Unix `SOCK_STREAM` socket whose other end the sender serves.
//!
//! - Agent to VMM, `{"port":N}`: connect this socket to the guest's port N. If
//!   the guest refuses, the VMM closes the socket and the agent reads end of file.
//! - VMM to agent, `{"port":N}`: the guest connected to the host's port N. The
//!   agent serves the socket, or closes it and the guest reads a reset.
//!
//! Nothing is ever opened by name, so the VMM needs no path and no `connect`.

use serde::{Deserialize, Serialize};

/// The longest message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 256;

/// One connection, handed over with its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// The vsock port at the receiver's side of the connection.
    pub port: u32,
}
