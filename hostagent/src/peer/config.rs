//! Which nodes give each other blobs: the administrator's `peers.toml`.
//!
//! The file is in the directory `$MOTE_CONFIG`, or in `/etc/mote`. Without it this node
//! neither asks nor is asked. Fields that are not listed here are refused.
//!
//! ```toml
//! listen = "10.0.0.1:7431"            # give blobs to peers; without it this node only takes
//! send_bytes_per_second = 12500000    # to all peers together; no limit unless set
//! receive_bytes_per_second = 12500000 # of each process, from all its peers together; no limit
//!                                     # unless set
//!
//! [[peer]]
//! key = "d75a98…"                     # `mote node key` there; it may take blobs from here
//! address = "10.0.0.2:7431"           # where it is asked for them; without it, it is not
//! names = true                        # believe it which image a name means; false unless set
//! ```
//!
//! Peers are asked in the order of the file.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::key::{PublicKey, PublicKeyError};
use crate::config_file::{self, FileError};

/// The name of the file.
pub const FILE_NAME: &str = "peers.toml";
/// Less, and a request would take longer than anybody waits for the next piece.
pub const MIN_BYTES_PER_SECOND: u64 = 64 << 10;

/// What `peers.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Where peers may ask for blobs.
    pub listen: Option<SocketAddr>,
    /// How much is sent, to all peers together.
    pub send_bytes_per_second: Option<u64>,
    /// How much is received, from all peers together, by each process that asks some.
    pub receive_bytes_per_second: Option<u64>,
    /// In the order in which they are asked.
    pub peers: Vec<Peer>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is known by.
    pub key: PublicKey,
    /// Where it is asked for blobs, if it is.
    pub address: Option<SocketAddr>,
    /// Whether it is believed which image a name means.
    pub names: bool,
}

/// Why `peers.toml` cannot be used.
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

/// What is wrong with a value of `peers.toml`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueProblem {
    /// Not `IP:PORT`.
    #[error("{field} is {text:?}; write IP:PORT, such as \"10.0.0.1:7431\"")]
    Address {
        /// The field.
        field: &'static str,
        /// Its value.
        text: String,
    },
    /// Not a public key.
    #[error(transparent)]
    Key(#[from] PublicKeyError),
    /// The same peer again.
    #[error("the peer {0} is listed twice")]
    Twice(PublicKey),
    /// So little that it would stop the transfer.
    #[error("{field} is {value}; it must be {MIN_BYTES_PER_SECOND} at least")]
    TooLittle {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<Spanned<String>>,
    send_bytes_per_second: Option<Spanned<u64>>,
    receive_bytes_per_second: Option<Spanned<u64>>,
    #[serde(default)]
    peer: Vec<PeerTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerTable {
    key: Spanned<String>,
    address: Option<Spanned<String>>,
    #[serde(default)]
    names: bool,
}

impl Settings {
    /// Those of `$MOTE_CONFIG` or `/etc/mote`; `None` if there is no `peers.toml`.
    pub fn of_this_machine() -> Result<Option<Self>, ConfigError> {
        Self::load(&config_file::directory())
    }

    /// Reads `peers.toml` in `directory`; `None` if there is none.
    pub fn load(directory: &Path) -> Result<Option<Self>, ConfigError> {
        let path = directory.join(FILE_NAME);
        let text = config_file::read(&path)?;
        text.map(|text| Self::parse(&path, &text)).transpose()
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
        let address = |field, value: &Option<Spanned<String>>| {
            let Some(value) = value else { return Ok(None) };
            let text = value.get_ref();
            text.parse().map(Some).map_err(|_| {
                let text = text.clone();
                refuse(value.span().start, ValueProblem::Address { field, text })
            })
        };
        let rate = |field, value: &Option<Spanned<u64>>| match value {
            Some(value) if *value.get_ref() < MIN_BYTES_PER_SECOND => {
                let problem = ValueProblem::TooLittle {
                    field,
                    value: *value.get_ref(),
                };
                Err(refuse(value.span().start, problem))
            }
            value => Ok(value.as_ref().map(|value| *value.get_ref())),
        };
        let mut seen = BTreeSet::new();
        let mut peers = Vec::new();
        for table in &file.peer {
            let at = table.key.span().start;
            let key = table.key.get_ref().parse::<PublicKey>();
            let key = key.map_err(|error| refuse(at, error.into()))?;
            if !seen.insert(key) {
                return Err(refuse(at, ValueProblem::Twice(key)));
            }
            peers.push(Peer {
                key,
                address: address("address", &table.address)?,
                names: table.names,
            });
        }
        Ok(Self {
            listen: address("listen", &file.listen)?,
            send_bytes_per_second: rate("send_bytes_per_second", &file.send_bytes_per_second)?,
            receive_bytes_per_second: rate(
                "receive_bytes_per_second",
                &file.receive_bytes_per_second,
            )?,
            peers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, ConfigError> {
        Settings::parse(Path::new("/etc/mote/peers.toml"), text)
    }

    #[test]
    fn without_the_file_there_are_no_settings() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(directory.path()).unwrap(), None);
        std::fs::write(directory.path().join(FILE_NAME), "").unwrap();
        let settings = Settings::load(directory.path()).unwrap();
        assert_eq!(settings, Some(Settings::default()));
    }

    #[test]
    fn every_field_is_read() {
        let [one, two] = ["a", "b"].map(|digit| digit.repeat(64));
        let settings = parse(&format!(
            "listen = \"10.0.0.1:7431\"\nsend_bytes_per_second = 65536\n\
             receive_bytes_per_second = 12500000\n[[peer]]\nkey = \"{one}\"\n\
             address = \"[fd00::2]:1\"\nnames = true\n[[peer]]\nkey = \"{two}\"\n"
        ));
        let peer = |key: &str, address: Option<&str>, names| Peer {
            key: key.parse().unwrap(),
            address: address.map(|address| address.parse().unwrap()),
            names,
        };
        let expected = Settings {
            listen: Some("10.0.0.1:7431".parse().unwrap()),
            send_bytes_per_second: Some(65_536),
            receive_bytes_per_second: Some(12_500_000),
            peers: vec![
                peer(&one, Some("[fd00::2]:1"), true),
                peer(&two, None, false),
            ],
        };
        assert_eq!(settings.unwrap(), expected);
    }

    #[test]
    fn an_error_names_the_file_and_the_line() {
        let key = "a".repeat(64);
        for (text, line, words) in [
            ("\nlisten = \"host:1\"", 2, "IP:PORT"),
            ("listen = 1", 1, "string"),
            ("relay = \"x\"", 1, "relay"),
            ("[[peer]]\naddress = \"1.2.3.4:5\"", 1, "key"),
            ("[[peer]]\nkey = \"aa\"", 2, "64"),
            (
                &format!("[[peer]]\nkey = \"{key}\"\n\naddress = \"x\""),
                4,
                "IP:PORT",
            ),
            (
                &format!("[[peer]]\nkey = \"{key}\"\n[[peer]]\nkey = \"{key}\""),
                4,
                "twice",
            ),
            ("send_bytes_per_second = 1", 1, "65536"),
            ("receive_bytes_per_second = -1", 1, ""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            let start = format!("/etc/mote/peers.toml:{line}: ");
            assert!(
                error.starts_with(&start) && error.contains(words),
                "{error}"
            );
        }
    }
}
