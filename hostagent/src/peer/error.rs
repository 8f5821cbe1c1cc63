//! What can go wrong between nodes.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use quinn::{ConnectionError, ReadError, ReadExactError, WriteError};

use super::config::{ConfigError, FILE_NAME};
use super::key::{KeyError, PublicKey};
use super::message::MessageError;
use super::transport::Code;
use crate::image::digest::Digest;
use crate::runtime::Cancelled;
use crate::store::{ImportError, StoreError};

/// Why peers did not give something, or this node cannot give anything.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This node's key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is no configuration.
    #[error(
        "this node has no peers: there is no {FILE_NAME} in {directory}; `mote node --help` says what is in it"
    )]
    Off {
        /// Where it would be.
        directory: String,
    },
    /// The configuration does not say where to listen.
    #[error(
        "this node gives nothing to peers: {FILE_NAME} has no `listen`; add `listen = \"IP:PORT\"`"
    )]
    NoListen,
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for peers; is it an address of this machine, and free?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The threads that talk to peers cannot be started.
    #[error("cannot start the threads that talk to peers")]
    Runtime {
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS for peers")]
    Tls {
        /// Why.
        source: rustls::Error,
    },
    /// None of the peers gave it.
    #[error("no peer gave {what}{}", Listed(.attempts))]
    Nobody {
        /// Such as `blob blake3:…`.
        what: String,
        /// What each said, in the order in which they were asked.
        attempts: Vec<Attempt>,
    },
    /// The image is not one to take in.
    #[error("image {id} cannot be used")]
    Image {
        /// The image id.
        id: Digest,
        /// Why.
        source: Box<ImportError>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Cancelled> for PeerError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// What came of asking one peer.
#[derive(Debug)]
pub struct Attempt {
    /// The peer.
    pub peer: PublicKey,
    /// Where it was asked, if it was.
    pub address: Option<SocketAddr>,
    /// Why it did not give what was wanted.
    pub problem: AskError,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}: {}", self.problem),
            None => write!(f, "{}: {}", self.peer, self.problem),
        }
    }
}

struct Listed<'a>(&'a [Attempt]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(
                f,
                ": none in {FILE_NAME} has an address and may be asked for it"
            );
        }
        for (index, attempt) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { ": " } else { "; " })?;
            write!(f, "{attempt}")?;
        }
        Ok(())
    }
}

/// Why a peer did not give what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// It does not answer.
    #[error("it cannot be reached: {reason}")]
    Unreachable {
        /// Why, in words.
        reason: String,
    },
    /// It has as many connections of this node as it allows. Those of a process that was
    /// killed count until it has missed their signs of life.
    #[error("it has enough connections of this node: {reason}; in some seconds there may be fewer")]
    Busy {
        /// Why, in words.
        reason: String,
    },
    /// It does not know this node's key.
    #[error(
        "it refused this node: {reason}; is this node's key (`mote node key`) in its {FILE_NAME}?"
    )]
    Refused {
        /// Why, in words.
        reason: String,
    },
    /// It does not have it.
    #[error("it does not have it")]
    NotHere,
    /// It has it and cannot give it.
    #[error("it has it but cannot give it: {problem:?}")]
    Failed {
        /// Its words.
        problem: String,
    },
    /// Not all that it says the image consists of could be had, from it or from others.
    #[error("what it names could not be had: {problem}")]
    Incomplete {
        /// What each peer said.
        problem: String,
    },
    /// It is more than `limits.toml` allows.
    #[error("what it has of it is longer than limits.toml allows")]
    TooLarge,
    /// What it has is damaged.
    #[error("its own copy is corrupt; `mote store verify` there")]
    Corrupt,
    /// It sent nothing for long.
    #[error("it sent nothing for {seconds} s")]
    Stalled {
        /// How long.
        seconds: u64,
    },
    /// It sent too little in the time that somebody who waits has.
    #[error("it took longer than {seconds} s for part of a blob")]
    Slow {
        /// How long.
        seconds: u64,
    },
    /// The connection broke.
    #[error("the connection broke: {reason}")]
    Lost {
        /// Why, in words.
        reason: String,
    },
    /// It sent something else than it should; it is asked nothing more.
    #[error("it sent what it should not: {problem}")]
    Wrong {
        /// What.
        problem: String,
    },
    /// It sent something else than it should before.
    #[error("it has sent what it should not, and is not asked any more")]
    Distrusted,
}

impl AskError {
    /// In a peer's words, of which there may be many.
    pub(super) fn failed(problem: &str) -> Self {
        Self::Failed {
            problem: problem.chars().take(MAX_PROBLEM_CHARS).collect(),
        }
    }

    pub(super) fn wrong(problem: impl Into<String>) -> Self {
        Self::Wrong {
            problem: problem.into(),
        }
    }

    /// Whether the peer is not to be asked again.
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong { .. })
    }
}

/// How many of a peer's words are repeated.
const MAX_PROBLEM_CHARS: usize = 300;
/// TLS alerts as QUIC errors begin here (RFC 9001, section 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

impl From<ConnectionError> for AskError {
    fn from(error: ConnectionError) -> Self {
        let reason = error.to_string();
        match &error {
            ConnectionError::ConnectionClosed(close)
                if TLS_ALERTS.contains(&u64::from(close.error_code)) =>
            {
                Self::Refused { reason }
            }
            ConnectionError::ApplicationClosed(close)
                if close.error_code == Code::TooMany.into() =>
            {
                Self::Busy { reason }
            }
            _ => Self::Lost { reason },
        }
    }
}

impl From<WriteError> for AskError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            error => Self::Lost {
                reason: error.to_string(),
            },
        }
    }
}

impl From<ReadError> for AskError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) if code == Code::Corrupt.into() => Self::Corrupt,
            ReadError::ConnectionLost(error) => error.into(),
            error => Self::Lost {
                reason: error.to_string(),
            },
        }
    }
}

impl From<ReadExactError> for AskError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::wrong("it ended early"),
            ReadExactError::ReadError(error) => error.into(),
        }
    }
}

impl From<MessageError> for AskError {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Read(error) => error.into(),
            MessageError::Limit => Self::TooLarge,
            error => Self::wrong(error.to_string()),
        }
    }
}
