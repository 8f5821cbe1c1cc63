//! How registries are reached: the administrator's `registries.toml`.
//!
//! The file is in the directory `$MOTE_CONFIG`, or in `/etc/mote`. Without it, the
//! defaults below hold. Fields that are not listed here are refused.
//!
//! ```toml
//! [download]
//! attempts = 5          # how often a request is tried before its error is final
//! stall_seconds = 30    # how long a server may send nothing
//! connect_seconds = 10  # for name resolution, TCP and TLS together
//! parallel_layers = 3   # layers of one image downloaded at a time
//!
//! [registry."docker.io"]
//! mirrors = ["https://mirror.example", "http://10.0.0.2:5000"]
//!
//! [registry."registry.example:5000"]
//! ca = "registry.example.pem"
//!
//! [registry."10.0.0.2:5000"]
//! plain_http = true
//! ```
//!
//! A registry is named as in an image's name, `host[:port]`.
//!
//! - `mirrors` are asked first and in order, then the registry itself; pulls only.
//!   A mirror never gets the registry's credentials. `http://` means plain HTTP.
//!   One that gives other bytes than a digest or a hash tree names is not asked for that
//!   blob again by this process; the next one is, and the registry at the end.
//! - `plain_http` talks HTTP without TLS to the registry.
//! - `ca` is a file of PEM certificates that are trusted for this host beside those
//!   of the system; a relative path starts at the directory of `registries.toml`.
//!   It also holds where the host is a mirror, a token server or the target of a
//!   redirect.
//!
//! A registry on a loopback address or `localhost` without an entry is tried with
//! HTTPS and then with plain HTTP, as Docker does; every other with HTTPS only.
//! There is no setting that turns the verification of certificates off.
//!
//! Proxies come from the environment: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and
//! `NO_PROXY`. Loopback addresses are never reached through one.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use toml::Spanned;

use crate::config_file::{self, FileError};

/// The name of the file.
pub const FILE_NAME: &str = "registries.toml";

/// What `registries.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// For every registry.
    pub download: Download,
    /// By `host[:port]`, in lower case.
    pub registries: BTreeMap<String, RegistrySettings>,
}

/// Patience and parallelism.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// How often a request is tried before its error is final; at least 1.
    pub attempts: u32,
    /// How long a server may send nothing.
    pub stall: Duration,
    /// How long name resolution, TCP and TLS may take together.
    pub connect: Duration,
    /// How many layers of one image whoever pulls it downloads at a time.
    pub parallel_layers: usize,
    /// The wait before the second attempt, which doubles with each further one. It
    /// is not in the file: a server that wants another one says `Retry-After`.
    pub backoff: Duration,
}

impl Default for Download {
    fn default() -> Self {
        Self {
            attempts: 5,
            stall: Duration::from_secs(30),
            connect: Duration::from_secs(10),
            parallel_layers: 3,
            backoff: Duration::from_millis(300),
        }
    }
}

/// One registry, or another host that is met on the way to one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrySettings {
    /// Asked before the registry: scheme, host and port, no path.
    pub mirrors: Vec<Url>,
    /// No TLS.
    pub plain_http: bool,
    /// PEM certificates that are trusted for this host as well.
    pub ca: Option<PathBuf>,
}

/// Why `registries.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read, or is none.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value that cannot be used.
    #[error("{}:{line}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: ValueProblem,
    },
}

/// What is wrong with a value of `registries.toml`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueProblem {
    /// A number that makes no sense.
    #[error("{field} is {value}; it may be {} to {}", allowed.start(), allowed.end())]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        allowed: RangeInclusive<u64>,
    },
    /// Not `host[:port]`.
    #[error("{0:?} is not a registry; write host or host:port, as in an image's name")]
    Host(String),
    /// Not `scheme://host[:port]`.
    #[error("the mirror {0:?} is not https://HOST[:PORT] or http://HOST[:PORT]")]
    Mirror(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    download: DownloadTable,
    #[serde(default)]
    registry: BTreeMap<Spanned<String>, RegistryTable>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct DownloadTable {
    attempts: Option<Spanned<u64>>,
    stall_seconds: Option<Spanned<u64>>,
    connect_seconds: Option<Spanned<u64>>,
    parallel_layers: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryTable {
    #[serde(default)]
    mirrors: Vec<Spanned<String>>,
    #[serde(default)]
    plain_http: bool,
    ca: Option<PathBuf>,
}

impl Settings {
    /// The settings of this machine: those of `$MOTE_CONFIG` or `/etc/mote`.
    pub fn of_this_machine() -> Result<Self, ConfigError> {
        Self::load(&config_file::directory())
    }

    /// Reads `registries.toml` in `directory`; the defaults if there is none.
    pub fn load(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(FILE_NAME);
        match config_file::read(&path)? {
            Some(text) => Self::parse(&path, &text),
            None => Ok(Self::default()),
        }
    }

    /// Interprets the text of the file `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line = |at: usize| config_file::line(text, at);
        let file: File = config_file::parse(path, text)?;
        let refuse = |at: usize, problem| ConfigError::Value {
            path: path.to_owned(),
            line: line(at),
            problem,
        };
        let mut settings = Self::default();
        let number = |field, value: &Option<Spanned<u64>>, default: u64, allowed| match value {
            None => Ok(default),
            Some(value) => within(field, *value.get_ref(), allowed)
                .map_err(|problem| refuse(value.span().start, problem)),
        };
        let table = &file.download;
        let attempts = number("attempts", &table.attempts, 5, 1..=20)?;
        let stall = number("stall_seconds", &table.stall_seconds, 30, 1..=3600)?;
        let connect = number("connect_seconds", &table.connect_seconds, 10, 1..=3600)?;
        let layers = number("parallel_layers", &table.parallel_layers, 3, 1..=16)?;
        settings.download = Download {
            attempts: attempts as u32,
            stall: Duration::from_secs(stall),
            connect: Duration::from_secs(connect),
            parallel_layers: layers as usize,
            ..settings.download
        };
        for (name, table) in file.registry {
            let host = host(name.get_ref()).map_err(|p| refuse(name.span().start, p))?;
            let mirrors = table.mirrors.iter().map(|url| {
                mirror(url.get_ref()).map_err(|problem| refuse(url.span().start, problem))
            });
            let registry = RegistrySettings {
                mirrors: mirrors.collect::<Result<_, _>>()?,
                plain_http: table.plain_http,
                ca: table
                    .ca
                    .map(|ca| path.parent().unwrap_or(Path::new("")).join(ca)),
            };
            settings.registries.insert(host, registry);
        }
        Ok(settings)
    }

    /// What is set for a registry, by the domain of an image's name.
    pub fn registry(&self, domain: &str) -> Option<&RegistrySettings> {
        self.registries.get(&domain.to_ascii_lowercase())
    }

    /// The CA file for the host of a URL, with or without its port named.
    pub(super) fn ca_of(&self, url: &Url) -> Option<&Path> {
        let host = match url.host_str()? {
            super::endpoint::DOCKER_HUB_HOST => super::endpoint::DOCKER_HUB,
            host => host,
        };
        let with_port = format!("{host}:{}", url.port_or_known_default()?);
        let by_name = || url.port().is_none().then(|| self.registries.get(host))?;
        let settings = self.registries.get(&with_port).or_else(by_name)?;
        settings.ca.as_deref()
    }
}

fn within(
    field: &'static str,
    value: u64,
    allowed: RangeInclusive<u64>,
) -> Result<u64, ValueProblem> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    Err(ValueProblem::OutOfRange {
        field,
        value,
        allowed,
    })
}

/// A registry's name, in the form image names have it.
fn host(text: &str) -> Result<String, ValueProblem> {
    let malformed = || ValueProblem::Host(text.to_owned());
    if text.contains(['/', '@', '?', '#']) {
        return Err(malformed());
    }
    let url = Url::parse(&format!("https://{text}/")).map_err(|_| malformed())?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(malformed());
    }
    Ok(match text.to_ascii_lowercase() {
        name if name == "index.docker.io" || name == super::endpoint::DOCKER_HUB_HOST => {
            super::endpoint::DOCKER_HUB.to_owned()
        }
        name => name,
    })
}

fn mirror(text: &str) -> Result<Url, ValueProblem> {
    let malformed = || ValueProblem::Mirror(text.to_owned());
    let url = Url::parse(text).map_err(|_| malformed())?;
    let is_bare = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if is_bare && matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err(malformed())
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
