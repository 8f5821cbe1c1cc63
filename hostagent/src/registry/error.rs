//! What can go wrong with a registry.

use std::fmt;
use std::io;
use std::time::Duration;

use super::config::ConfigError;
use super::credentials::CredentialsError;
use super::endpoint;
use super::redirect::RedirectProblem;
use super::tls::TlsError;
use crate::image::digest::Digest;
use crate::runtime::Cancelled;

/// What was attempted and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Such as `get the manifest debian:12`.
    pub action: String,
    /// Host and port of the URL.
    pub host: String,
}

impl Attempt {
    pub(super) fn new(action: &str, url: &reqwest::Url) -> Self {
        Self {
            action: action.to_owned(),
            host: endpoint::shown(url),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} (at {})", self.action, self.host)
    }
}

/// What a server said about its refusal: bounded and printable, perhaps nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail(pub String);

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.0)
    }
}

/// Why a registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The threads that talk to registries cannot be started.
    #[error("cannot start the threads that talk to registries")]
    Runtime {
        /// Why.
        source: io::Error,
    },
    /// `registries.toml` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The credentials for a registry cannot be had.
    #[error("cannot get the credentials for {registry}")]
    Credentials {
        /// The registry's domain.
        registry: String,
        /// Why.
        source: CredentialsError,
    },
    /// The trusted certificates cannot be had, or TLS cannot be set up.
    #[error("{attempt}: TLS cannot be set up")]
    Tls {
        /// What was attempted.
        attempt: Attempt,
        /// Why.
        source: TlsError,
    },
    /// The domain of an image's name is no host that a URL can have.
    #[error("{0:?} is not the name of a host, so it cannot be a registry")]
    NoHost(String),
    /// No connection, or none that lasted for an answer.
    #[error("{attempt}: no answer")]
    Request {
        /// What was attempted.
        attempt: Attempt,
        /// Why.
        source: reqwest::Error,
    },
    /// Neither `/etc/hosts` nor the name servers know the host.
    #[error("{attempt}: there is no host of that name")]
    UnknownHost {
        /// What was attempted.
        attempt: Attempt,
        /// What the name servers say.
        source: reqwest::Error,
    },
    /// The server's certificate was not accepted.
    #[error(
        "{attempt}: the server's certificate is not trusted; if it should be, name the file of its CA as `ca` in registries.toml"
    )]
    Certificate {
        /// What was attempted.
        attempt: Attempt,
        /// What is wrong with it.
        source: reqwest::Error,
    },
    /// The server sent nothing for too long.
    #[error("{attempt}: the server sent nothing for {} s", seconds(.after))]
    Stalled {
        /// What was attempted.
        attempt: Attempt,
        /// How long that was waited for.
        after: Duration,
    },
    /// It does not exist, as far as the registry tells.
    #[error("{attempt}: it does not exist there (404){detail}")]
    NotFound {
        /// What was attempted.
        attempt: Attempt,
        /// What the registry said.
        detail: Detail,
    },
    /// A status that is none of success.
    #[error("{attempt}: the server answered {status}{detail}")]
    Status {
        /// What was attempted.
        attempt: Attempt,
        /// The HTTP status.
        status: reqwest::StatusCode,
        /// What the registry said.
        detail: Detail,
        /// When the registry wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The registry wants credentials, and there are none.
    #[error(
        "{attempt}: it does not exist, or needs credentials and there are none for {registry}; `docker login {registry}` stores them{detail}"
    )]
    NoCredentials {
        /// What was attempted.
        attempt: Attempt,
        /// What `docker login` takes.
        registry: String,
        /// What the registry said.
        detail: Detail,
    },
    /// The credentials there are do not suffice.
    #[error(
        "{attempt}: denied to the credentials stored for {registry}; if they are not the right ones, `docker login {registry}` replaces them{detail}"
    )]
    Denied {
        /// What was attempted.
        attempt: Attempt,
        /// What `docker login` takes.
        registry: String,
        /// What the registry said.
        detail: Detail,
    },
    /// A token, good a moment ago, is no longer accepted.
    #[error("{attempt}: the authorization has expired meanwhile")]
    Expired {
        /// What was attempted.
        attempt: Attempt,
    },
    /// The registry wants an authentication that is not known or not safe.
    #[error("{attempt}: cannot authenticate: {problem}")]
    Challenge {
        /// What was attempted.
        attempt: Attempt,
        /// What is wrong with what it asks for.
        problem: ChallengeProblem,
    },
    /// A redirect that is not followed.
    #[error("{attempt}: {problem}")]
    Redirect {
        /// What was attempted.
        attempt: Attempt,
        /// Why it is not followed.
        problem: RedirectProblem,
    },
    /// More than may be read into memory.
    #[error("{attempt}: it is longer than {limit} bytes, the most that is accepted")]
    TooLarge {
        /// What was attempted.
        attempt: Attempt,
        /// The most that is accepted, in bytes.
        limit: u64,
    },
    /// Other content than was asked for, or than the registry announced.
    #[error("{attempt}: it is corrupt: expected {expected}, found {found}")]
    Digest {
        /// What was attempted.
        attempt: Attempt,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Less content than its descriptor says.
    #[error("{attempt}: it ends after {found} bytes, its descriptor says {expected}")]
    TooShort {
        /// What was attempted.
        attempt: Attempt,
        /// What the descriptor says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// More content than its descriptor says.
    #[error("{attempt}: it is longer than the {expected} bytes that its descriptor says")]
    TooLong {
        /// What was attempted.
        attempt: Attempt,
        /// What the descriptor says.
        expected: u64,
    },
    /// Another part of the content than was asked for.
    #[error("{attempt}: asked for {asked}, the server sent {answered:?}")]
    WrongRange {
        /// What was attempted.
        attempt: Attempt,
        /// The range asked for.
        asked: String,
        /// The `Content-Range` of the answer, bounded and printable.
        answered: String,
    },
    /// The whole content where a part was asked for.
    #[error(
        "{attempt}: the server does not send parts of blobs (Range), so this blob cannot be fetched lazily"
    )]
    NoRanges {
        /// What was attempted.
        attempt: Attempt,
    },
    /// A JSON document that is not what it should be.
    #[error("{attempt}: the answer is not {expected}")]
    Document {
        /// What was attempted.
        attempt: Attempt,
        /// Such as "an image index".
        expected: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// More entries or pages than are looked at.
    #[error("{attempt}: there are more than {limit} {what}, the most that is looked at")]
    TooMany {
        /// What was attempted.
        attempt: Attempt,
        /// The most that is looked at.
        limit: usize,
        /// Such as "pages".
        what: &'static str,
    },
    /// An answer that lacks what the protocol demands of it.
    #[error("{attempt}: the answer has no usable {header} header")]
    Header {
        /// What was attempted.
        attempt: Attempt,
        /// The header.
        header: &'static str,
    },
    /// What is pushed could not be read.
    #[error("{attempt}: its content cannot be read here")]
    Content {
        /// What was attempted.
        attempt: Attempt,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a challenge, or with what its token server does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeProblem {
    /// Nothing that is spoken here.
    #[error("the registry asks for {0}; Basic and Bearer are supported")]
    Scheme(String),
    /// The header breaks RFC 9110, section 11.
    #[error("the WWW-Authenticate header is missing or malformed")]
    Malformed,
    /// No URL of a token server.
    #[error("the realm {0:?} is not an http or https URL")]
    Realm(String),
    /// Credentials would travel in the clear.
    #[error("the token server {0} has no TLS while the registry has, so it gets no credentials")]
    InsecureRealm(String),
    /// No token in the answer.
    #[error("the token server {0} sent no token")]
    NoToken(String),
}

/// Whether trying again may help, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// It would end the same.
    Never,
    /// After a while that grows.
    Backoff,
    /// After this time.
    After(Duration),
}

impl From<Cancelled> for RegistryError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl RegistryError {
    /// Whether it is worth another try.
    pub(super) fn retry(&self) -> Retry {
        match self {
            Self::Request { .. } | Self::Stalled { .. } | Self::Expired { .. } => Retry::Backoff,
            Self::Status {
                status,
                retry_after,
                ..
            } if matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504) => {
                retry_after.map_or(Retry::Backoff, Retry::After)
            }
            _ => Retry::Never,
        }
    }

    /// Whether the server answered what no server should: it neither failed nor declined.
    pub fn is_wrong_answer(&self) -> bool {
        matches!(
            self,
            Self::Digest { .. }
                | Self::TooLong { .. }
                | Self::TooShort { .. }
                | Self::WrongRange { .. }
                | Self::Redirect { .. }
        )
    }

    /// Whether the server could not be reached at all.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Request { source, .. } if source.is_connect())
            || matches!(self, Self::Stalled { .. } | Self::UnknownHost { .. })
    }
}

fn seconds(duration: &Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, retry_after: Option<Duration>) -> Retry {
        let attempt = Attempt {
            action: "get".to_owned(),
            host: "a.example".to_owned(),
        };
        let error = RegistryError::Status {
            attempt,
            status: reqwest::StatusCode::from_u16(code).unwrap(),
            detail: Detail::default(),
            retry_after,
        };
        error.retry()
    }

    #[test]
    fn only_passing_failures_are_tried_again() {
        for code in [408, 429, 500, 502, 503, 504] {
            assert_eq!(status(code, None), Retry::Backoff, "{code}");
        }
        for code in [400, 401, 403, 405, 410, 416, 418, 501, 505] {
            assert_eq!(status(code, Some(Duration::ZERO)), Retry::Never, "{code}");
        }
        let wait = Duration::from_secs(3);
        assert_eq!(status(429, Some(wait)), Retry::After(wait));
    }
}
