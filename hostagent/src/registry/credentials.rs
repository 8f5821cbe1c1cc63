//! Credentials as `docker login` stores them.
//!
//! They are in `config.json`, in the directory `$DOCKER_CONFIG` or in `~/.docker`,
//! or with a helper program that this file names. Source: the reference of the
//! `docker` command, "Docker CLI configuration file properties" and
//! "docker login: Credential helpers".

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{env, fmt};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::credential_helper::{self, HelperError};
use super::endpoint::DOCKER_HUB;
use super::secret::Secret;

/// The key of Docker Hub's credentials, from the days of the first registry API.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Room for thousands of registries.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The user name that marks a password as an identity token.
const TOKEN_USERNAME: &str = "<token>";

/// What convinces a registry or its token server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// For Basic authentication.
    Password {
        /// Who.
        username: String,
        /// Shown to nobody.
        password: Secret,
    },
    /// An OAuth 2.0 refresh token, which the token server exchanges.
    IdentityToken(Secret),
}

/// Where credentials come from.
#[derive(Debug, Clone)]
pub struct CredentialStore {
    /// The `config.json`, whether or not it is there.
    file: Option<PathBuf>,
}

/// Why there may be credentials, but they cannot be had. None of it quotes them.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is far too long.
    #[error("{} is longer than {MAX_FILE_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not the JSON it should be. What serde says might quote a
    /// secret, so only the place is told.
    #[error("{}:{line}:{column}: this is not what `docker login` writes; correct it, or log in again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// An `auth` is not the base64 form of `user:password`.
    #[error("{}: the `auth` of {key:?} is not base64 of USER:PASSWORD; log in again", path.display())]
    Auth {
        /// The file.
        path: PathBuf,
        /// The registry's key in the file.
        key: String,
    },
    /// The helper did not do its work.
    #[error("the credential helper {program} that {} names has failed", path.display())]
    Helper {
        /// The file.
        path: PathBuf,
        /// The helper's program.
        program: String,
        /// How.
        source: HelperError,
    },
}

/// `null` stands for "empty", as Go writes it.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<Secret>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<Secret>,
    #[serde(default)]
    identitytoken: Option<Secret>,
}

impl CredentialStore {
    /// The store of whoever runs this process.
    pub fn of_this_user() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let directory = set("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".docker")));
        Self {
            file: directory.map(|directory| directory.join("config.json")),
        }
    }

    /// The store in a directory that has a `config.json`, or has none.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            file: Some(directory.join("config.json")),
        }
    }

    /// No credentials at all.
    pub fn empty() -> Self {
        Self { file: None }
    }

    /// The credentials for a registry, by the domain of an image's name; none means
    /// that it is met anonymously. It may run a helper, and wait for it up to
    /// [`credential_helper::TIMEOUT`].
    pub fn get(&self, domain: &str) -> Result<Option<Credential>, CredentialsError> {
        let Some(path) = &self.file else {
            return Ok(None);
        };
        let Some(file) = read(path)? else {
            return Ok(None);
        };
        if let Some(program) = file.helper(domain) {
            let found =
                credential_helper::get(&program, &server_address(domain)).map_err(|source| {
                    CredentialsError::Helper {
                        path: path.clone(),
                        program,
                        source,
                    }
                })?;
            if let Some(found) = found {
                return Ok(credential(found.username, found.secret));
            }
        }
        let auths = file.auths.unwrap_or_default();
        // The exact key first: `docker login` of today writes that one.
        let exact = server_address(domain);
        let entry = auths
            .get_key_value(&exact)
            .or_else(|| auths.iter().find(|(key, _)| names(key, domain)));
        match entry {
            Some((key, Some(entry))) => {
                entry
                    .credential()
                    .map_err(|NotBase64| CredentialsError::Auth {
                        path: path.clone(),
                        key: key.clone(),
                    })
            }
            _ => Ok(None),
        }
    }
}

impl ConfigFile {
    /// The program that has a registry's credentials.
    fn helper(&self, domain: &str) -> Option<String> {
        let helpers = self.cred_helpers.iter().flatten();
        let own = helpers
            .filter(|(key, _)| names(key, domain))
            .map(|(_, helper)| helper);
        own.chain(&self.creds_store)
            .find(|helper| !helper.is_empty())
            .map(|helper| format!("docker-credential-{helper}"))
    }
}

struct NotBase64;

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, NotBase64> {
        if let Some(token) = self.identitytoken.as_ref().filter(|t| !t.is_empty()) {
            return Ok(Some(Credential::IdentityToken(token.clone())));
        }
        if let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            let bytes = STANDARD.decode(auth.expose()).map_err(|_| NotBase64)?;
            let text = String::from_utf8(bytes).map_err(|_| NotBase64)?;
            let (username, password) = text.split_once(':').ok_or(NotBase64)?;
            let password = Secret::new(password.trim_end_matches('\0').to_owned());
            return Ok(credential(username.to_owned(), password));
        }
        match (&self.username, &self.password) {
            (Some(username), Some(password)) => Ok(credential(username.clone(), password.clone())),
            _ => Ok(None),
        }
    }
}

/// What a user name and a secret amount to.
fn credential(username: String, password: Secret) -> Option<Credential> {
    if username == TOKEN_USERNAME {
        return Some(Credential::IdentityToken(password));
    }
    (!username.is_empty()).then_some(Credential::Password { username, password })
}

fn read(path: &Path) -> Result<Option<ConfigFile>, CredentialsError> {
    let failed = |source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match crate::open::at_once(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(CredentialsError::TooLong {
            path: path.to_owned(),
        });
    }
    let parsed = serde_json::from_slice(&bytes).map_err(|error| CredentialsError::Malformed {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })?;
    Ok(Some(parsed))
}

/// What helpers and `docker login` call a registry.
pub(super) fn server_address(domain: &str) -> String {
    if domain == DOCKER_HUB {
        DOCKER_HUB_KEY.to_owned()
    } else {
        domain.to_owned()
    }
}

/// Whether a key of `config.json` means a registry: older tools wrote URLs.
fn names(key: &str, domain: &str) -> bool {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    let host = ["/v1", "/v2"]
        .iter()
        .find_map(|suffix| key.strip_suffix(suffix))
        .unwrap_or(key);
    let hub = ["index.docker.io", "registry-1.docker.io", DOCKER_HUB];
    host.eq_ignore_ascii_case(domain) || (domain == DOCKER_HUB && hub.contains(&host))
}

/// Where the credentials come from, for errors.
impl fmt::Display for CredentialStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}", file.display()),
            None => f.write_str("no credentials"),
        }
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
