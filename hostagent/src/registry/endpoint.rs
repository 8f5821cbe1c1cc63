//! Which URL a repository is at.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use crate::image::digest::Digest;
use crate::image::name::ImageName;

/// The registry of names without a domain.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Where it is.
pub(super) const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// A repository of a registry: where the images of one name are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    domain: String,
    path: String,
}

impl Repository {
    /// The repository an image is in.
    pub fn of(name: &ImageName) -> Self {
        // An image's name always has a domain, by its construction.
        let (domain, path) = name.repository().split_once('/').unwrap_or_default();
        Self {
            domain: domain.to_owned(),
            path: path.to_owned(),
        }
    }

    /// `host[:port]` as in the image's name, such as `docker.io`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What follows the domain, such as `library/debian`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Domain and path, the same for all names that lead to the same place by their
    /// spelling alone: host names in upper case, HTTPS's own port, addresses in
    /// another notation, the other names of Docker's registry.
    pub fn canonical(&self) -> String {
        let host = match Url::parse(&format!("https://{}/", self.domain)) {
            Ok(url) => shown(&url),
            // A port that no URL has: it leads nowhere.
            Err(_) => self.domain.to_ascii_lowercase(),
        };
        let domain = match host.as_str() {
            DOCKER_HUB_HOST | "index.docker.io" => DOCKER_HUB,
            host => host,
        };
        format!("{domain}/{}", self.path)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}

/// Which manifest of a repository (distribution specification 1.1: "reference").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// Whatever the tag points at; a tag as an [`ImageName`] has it.
    Tag(String),
    /// This one.
    Digest(Digest),
}

impl Reference {
    /// What an image's name asks for: its digest if it has one, else its tag.
    pub fn of(name: &ImageName) -> Self {
        match (name.digest(), name.tag()) {
            (Some(digest), _) => Self::Digest(digest),
            (None, tag) => Self::Tag(tag.unwrap_or("latest").to_owned()),
        }
    }

    /// The tag under which registries without the referrers API list what refers
    /// to a manifest (distribution specification 1.1, "Referrers Tag Schema").
    pub(super) fn referrers_of(digest: Digest) -> Self {
        Self::Tag(format!("sha256-{}", digest.hex()))
    }

    /// `REPOSITORY:TAG` or `REPOSITORY@DIGEST`.
    pub(super) fn within(&self, repository: &Repository) -> String {
        match self {
            Self::Tag(tag) => format!("{repository}:{tag}"),
            Self::Digest(digest) => format!("{repository}@{digest}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// A server that has the repositories of a registry.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Scheme, host and port.
    pub base: Url,
    /// The registry whose credentials it gets; a mirror gets none.
    pub credentials_of: Option<String>,
}

impl Endpoint {
    /// The registry itself.
    pub fn registry(domain: &str, scheme: &str) -> Option<Self> {
        let host = if domain == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            domain
        };
        Some(Self {
            base: Url::parse(&format!("{scheme}://{host}/")).ok()?,
            credentials_of: Some(domain.to_owned()),
        })
    }

    /// A mirror.
    pub fn mirror(base: &Url) -> Self {
        Self {
            base: base.clone(),
            credentials_of: None,
        }
    }

    /// Whether it is one.
    pub fn is_mirror(&self) -> bool {
        self.credentials_of.is_none()
    }

    /// The URL of something in a repository, such as `manifests/latest`.
    pub fn url(&self, repository: &Repository, what: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{what}", repository.path()));
        url
    }
}

/// Whether a URL leads to this machine by its name alone.
pub(super) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Whether credentials for one URL may go to the other: scheme, host and port.
pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Host, and port if it is not the scheme's own, for errors.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url_of(text: &str) -> String {
        let name: ImageName = text.parse().unwrap();
        let repository = Repository::of(&name);
        let endpoint = Endpoint::registry(repository.domain(), "https").unwrap();
        let what = format!("manifests/{}", Reference::of(&name));
        endpoint.url(&repository, &what).to_string()
    }

    #[test]
    fn a_name_leads_to_its_manifest() {
        let digest = Digest::of(b"");
        for (name, url) in [
            (
                "debian",
                "https://registry-1.docker.io/v2/library/debian/manifests/latest",
            ),
            (
                "localhost:5000/a/b:1",
                "https://localhost:5000/v2/a/b/manifests/1",
            ),
            ("[::1]:5000/a:1", "https://[::1]:5000/v2/a/manifests/1"),
        ] {
            assert_eq!(url_of(name), url);
        }
        let url = url_of(&format!("ghcr.io/a/b:1@{digest}"));
        assert_eq!(url, format!("https://ghcr.io/v2/a/b/manifests/{digest}"));
    }

    #[test]
    fn only_names_and_addresses_of_this_machine_are_loopback() {
        let is = |text: &str| is_loopback(&Url::parse(text).unwrap());
        for here in [
            "http://localhost",
            "http://127.8.9.1:5000",
            "http://[::1]",
            "http://a.localhost",
        ] {
            assert!(is(here), "{here}");
        }
        for there in [
            "http://localhost.example",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
        ] {
            assert!(!is(there), "{there}");
        }
    }

    proptest! {
        #[test]
        fn a_name_never_leads_out_of_its_repository(text in "([a-z0-9.]{1,12}(:[0-9]{1,4})?/)?[a-z0-9/._-]{1,20}(:[a-zA-Z0-9._-]{1,10})?") {
            if let Ok(name) = text.parse::<ImageName>() {
                let repository = Repository::of(&name);
                // A port that no URL has, such as 99999, has no endpoint.
                if let Some(endpoint) = Endpoint::registry(repository.domain(), "https") {
                    let url = endpoint.url(&repository, &format!("manifests/{}", Reference::of(&name)));
                    let path = format!("/v2/{}/manifests/{}", repository.path(), Reference::of(&name));
                    prop_assert_eq!(url.path(), path);
                    prop_assert!(same_origin(&url, &endpoint.base));
                }
            }
        }
    }
}
