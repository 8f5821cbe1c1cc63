//! What all requests of a client share, and how its calls are carried through:
//! mirrors before the registry, and again after failures that pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::HeaderMap;

use super::config::Settings;
use super::credentials::CredentialStore;
use super::endpoint::{Endpoint, Repository, is_loopback};
use super::error::{Attempt, RegistryError};
use super::retry::Backoff;
use super::tls::Clients;
use super::tokens::Tokens;
use super::transport::Payload;
use crate::image::digest::Digest;

/// How long a mirror that could not be reached is left alone.
const MIRROR_REST: Duration = Duration::from_secs(60);

/// What all requests of a client share.
pub(super) struct Session {
    pub settings: Settings,
    pub credentials: CredentialStore,
    pub clients: Clients,
    pub tokens: Tokens,
    /// What registries on this machine were found to speak.
    schemes: Mutex<BTreeMap<String, &'static str>>,
    /// Mirrors that cannot be reached, and since when.
    unreachable: Mutex<BTreeMap<String, Instant>>,
    /// Mirrors, and blobs of which they have given other bytes: no more than there are
    /// mirrors for each blob that is downloaded.
    rejected: Mutex<BTreeSet<(reqwest::Url, Digest)>>,
}

impl Session {
    pub fn new(settings: Settings, credentials: CredentialStore) -> Self {
        Self {
            settings,
            credentials,
            clients: Clients::default(),
            tokens: Tokens::default(),
            schemes: Mutex::default(),
            unreachable: Mutex::default(),
            rejected: Mutex::default(),
        }
    }

    /// The registry of a repository.
    pub async fn registry(&self, repository: &Repository) -> Result<Endpoint, RegistryError> {
        let domain = repository.domain();
        let with = |scheme| {
            Endpoint::registry(domain, scheme)
                .ok_or_else(|| RegistryError::NoHost(domain.to_owned()))
        };
        let secure = with("https")?;
        match self.settings.registry(domain) {
            Some(registry) if registry.plain_http => return with("http"),
            None if is_loopback(&secure.base) => {}
            _ => return Ok(secure),
        }
        let known = self
            .schemes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(domain)
            .copied();
        if let Some(scheme) = known {
            return with(scheme);
        }
        let plain = with("http")?;
        let (found, scheme) = if self.speaks(&secure).await {
            (secure, Some("https"))
        } else if self.speaks(&plain).await {
            (plain, Some("http"))
        } else {
            // Whatever is wrong shows with the request itself.
            (plain, None)
        };
        if let Some(scheme) = scheme {
            let mut schemes = self.schemes.lock().unwrap_or_else(PoisonError::into_inner);
            schemes.insert(domain.to_owned(), scheme);
        }
        Ok(found)
    }

    /// Whether a server speaks the scheme of its URL. A certificate that is not
    /// trusted is spoken TLS, never a reason to do without.
    async fn speaks(&self, endpoint: &Endpoint) -> bool {
        let mut url = endpoint.base.clone();
        url.set_path("/v2/");
        let attempt = Attempt::new("find out how to reach the registry", &url);
        let payload = Payload::Bytes(Bytes::new());
        let outcome = self
            .exchange(&attempt, Method::GET, url, HeaderMap::new(), payload)
            .await;
        match outcome {
            Ok(_) => true,
            Err(error) => matches!(
                error,
                RegistryError::Certificate { .. } | RegistryError::Tls { .. }
            ),
        }
    }

    /// The mirrors of a repository's registry that are worth a try.
    pub fn mirrors(&self, repository: &Repository) -> Vec<Endpoint> {
        let registry = self.settings.registry(repository.domain());
        let unreachable = self
            .unreachable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let rests = |url: &reqwest::Url| {
            let since = unreachable.get(url.as_str());
            since.is_some_and(|since| since.elapsed() < MIRROR_REST)
        };
        let mirrors = registry.map(|r| r.mirrors.as_slice()).unwrap_or_default();
        let awake = mirrors.iter().filter(|url| !rests(url));
        awake.map(Endpoint::mirror).collect()
    }

    /// Those that have not given other bytes instead of this blob.
    pub fn blob_mirrors(&self, repository: &Repository, digest: Digest) -> Vec<Endpoint> {
        let mut mirrors = self.mirrors(repository);
        let rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        mirrors.retain(|mirror| !rejected.contains(&(mirror.base.clone(), digest)));
        mirrors
    }

    /// Remembers that a mirror has given other bytes instead of a blob.
    pub fn reject(&self, mirror: &reqwest::Url, digest: Digest) {
        let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        rejected.insert((mirror.clone(), digest));
    }

    /// Remembers that a mirror is no use for now, if that is what an error says.
    pub fn note_failure(&self, endpoint: &Endpoint, error: &RegistryError) {
        if endpoint.is_mirror() && error.is_unreachable() {
            let mut unreachable = self
                .unreachable
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            unreachable.insert(endpoint.base.to_string(), Instant::now());
        }
    }

    /// Tries each mirror once and then the registry, as often as is configured. The
    /// registry's error is the one that counts.
    pub async fn pull<T>(
        &self,
        repository: &Repository,
        work: impl AsyncFn(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mirrors = self.mirrors(repository);
        self.pull_from(mirrors, repository, work).await
    }

    /// The same, of these mirrors.
    pub async fn pull_from<T>(
        &self,
        mirrors: Vec<Endpoint>,
        repository: &Repository,
        work: impl AsyncFn(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        for mirror in mirrors {
            match work(&mirror).await {
                Ok(found) => return Ok(found),
                Err(error) => self.note_failure(&mirror, &error),
            }
        }
        let endpoint = self.registry(repository).await?;
        self.retrying(async || work(&endpoint).await).await
    }

    /// Tries until it succeeds, fails for good, or has been tried often enough.
    pub async fn retrying<T>(
        &self,
        work: impl AsyncFn() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let download = &self.settings.download;
        let mut backoff = Backoff::new(download.backoff);
        for _ in 1..download.attempts {
            match work().await {
                Ok(found) => return Ok(found),
                Err(error) => match backoff.after(&error) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(error),
                },
            }
        }
        work().await
    }
}

/// The scope that lets a repository be read.
pub(super) fn pull_scope(repository: &Repository) -> String {
    format!("repository:{}:pull", repository.path())
}

/// The scope that lets a repository be read and written.
pub(super) fn push_scope(repository: &Repository) -> String {
    format!("repository:{}:pull,push", repository.path())
}
