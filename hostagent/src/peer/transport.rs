//! QUIC between nodes: how much of anything there may be, and how long anybody waits.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};

/// Connections that one peer may have.
pub(super) const MAX_CONNECTIONS: usize = 8;
/// Requests of one peer at a time, over all of its connections.
pub(super) const MAX_STREAMS: usize = 16;
/// Handshakes at a time: each is a few signatures, and nobody is known before.
pub(super) const MAX_HANDSHAKES: usize = 32;
/// What of a stream may be under way and not read. A fetch has four streams at a time, for
/// the blobs and the skeletons of two layers.
pub(super) const STREAM_BYTES: u32 = 1 << 20;
/// What of a connection: as much as all its streams, so that one which is not read holds up
/// no other.
const CONNECTION_BYTES: u32 = MAX_STREAMS as u32 * STREAM_BYTES;
/// What of a connection is kept to be sent again.
const SEND_BYTES: u64 = 4 << 20;

/// How long anybody waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a connection to come about.
    pub connect: Duration,
    /// For the next bytes of something, or until they can be sent.
    pub stall: Duration,
    /// For a connection to give any sign of life.
    pub idle: Duration,
    /// Until a connection without a request is closed.
    pub unused: Duration,
    /// Until a peer that could not be reached is tried again.
    pub retry: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(20),
            idle: Duration::from_secs(10),
            unused: Duration::from_secs(60),
            retry: Duration::from_secs(30),
        }
    }
}

/// Why a stream was given up; a QUIC application error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// It was not needed any more.
    Done = 0,
    /// The sender's own bytes are not what they should be.
    Corrupt = 1,
    /// The sender could not read its own bytes.
    Unreadable = 2,
    /// The other side said what it should not have.
    Misbehaved = 3,
    /// The other side took too long.
    TooSlow = 4,
    /// The node ends.
    Ending = 5,
    /// The other side has more connections than it may.
    TooMany = 6,
}

impl From<Code> for VarInt {
    fn from(code: Code) -> Self {
        VarInt::from_u32(code as u32)
    }
}

/// The parameters of connections.
pub(super) fn parameters(patience: &Patience) -> TransportConfig {
    let mut parameters = TransportConfig::default();
    let idle = patience.idle.as_millis().min(u128::from(u32::MAX)) as u32;
    parameters
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS as u32))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_BYTES))
        .send_window(SEND_BYTES)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .keep_alive_interval(Some(patience.idle / 3));
    parameters
}

/// A UDP socket at `address` and what speaks QUIC over it; to be called within the runtime.
pub(super) fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    let config = EndpointConfig::default();
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
}
