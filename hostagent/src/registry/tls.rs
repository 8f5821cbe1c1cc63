//! HTTP clients, each with the certificates it trusts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

use super::config::Settings;
use super::endpoint::is_loopback;
use super::resolver::Resolver;

/// What all requests say they come from.
const USER_AGENT: &str = concat!("mote/", env!("CARGO_PKG_VERSION"));
/// More than every certificate authority there is.
const MAX_CA_BYTES: u64 = 8 << 20;
/// How long a connection is kept for the next request. Servers close theirs after
/// about a minute or more.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Why there is no client for a host.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A configured CA file cannot be read.
    #[error("cannot read the CA file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A configured CA file is not PEM.
    #[error("the CA file {} is not PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A configured CA file has no certificate, or one that cannot be trusted.
    #[error("the CA file {} has no certificate that can be used", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The cryptography library refuses its configuration.
    #[error("the TLS library cannot be configured")]
    Library(#[from] rustls::Error),
    /// The HTTP client cannot be made, such as for a proxy that is not a URL.
    #[error("the HTTP client cannot be made")]
    Client(#[from] reqwest::Error),
}

/// What makes two hosts need different clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    /// With TLS, and so with certificates.
    is_secure: bool,
    ca: Option<PathBuf>,
    /// Without the proxies of the environment.
    direct: bool,
}

/// The clients that were needed so far.
#[derive(Default)]
pub(super) struct Clients {
    clients: Mutex<BTreeMap<Kind, reqwest::Client>>,
    system_roots: OnceLock<RootCertStore>,
    resolver: Resolver,
}

impl Clients {
    /// The client for a URL.
    pub fn for_url(&self, url: &Url, settings: &Settings) -> Result<reqwest::Client, TlsError> {
        let is_secure = url.scheme() == "https";
        let ca = settings.ca_of(url).filter(|_| is_secure);
        let kind = Kind {
            is_secure,
            ca: ca.map(Path::to_owned),
            direct: is_loopback(url),
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.make(&kind, settings)?;
        clients.insert(kind, client.clone());
        Ok(client)
    }

    fn make(&self, kind: &Kind, settings: &Settings) -> Result<reqwest::Client, TlsError> {
        let roots = if kind.is_secure {
            self.roots(kind.ca.as_deref())?
        } else {
            RootCertStore::empty()
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(self.resolver.clone())
            // Redirects are followed here, with care for credentials.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .user_agent(USER_AGENT)
            .connect_timeout(settings.download.connect)
            .pool_idle_timeout(POOL_IDLE);
        let builder = if kind.direct {
            builder.no_proxy()
        } else {
            builder
        };
        Ok(builder.build()?)
    }

    /// The system's certificates and those of `ca`.
    fn roots(&self, ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
        let mut roots = self.system_roots.get_or_init(system_roots).clone();
        if let Some(path) = ca {
            let certificates = read_ca(path)?;
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(TlsError::NoCertificate {
                    path: path.to_owned(),
                });
            }
        }
        Ok(roots)
    }
}

/// What the system trusts. A machine without certificates trusts no public server;
/// that shows where one is met, and need not where none is.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn read_ca(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file: File = crate::open::at_once(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_CA_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            path: path.to_owned(),
            source,
        })
}
