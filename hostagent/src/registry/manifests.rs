//! Manifests, fetched and checked.
//!
//! Source: distribution specification 1.1, "Pulling manifests".

use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;

use super::answer::Answer;
use super::endpoint::{Endpoint, Reference, Repository};
use super::error::RegistryError;
use super::session::{Session, pull_scope};
use super::transport::Call;
use crate::image::digest::Digest;

/// An image index of the OCI.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image manifest of the OCI.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An image index of Docker's.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// An image manifest of Docker's, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What is asked for. A registry that has only a schema 1 manifest sends it anyway,
/// and whoever interprets it says what is wrong.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or index as a registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The document, not interpreted.
    pub bytes: Vec<u8>,
    /// The SHA-256 of `bytes`. If the document was asked for by digest, it is that.
    pub digest: Digest,
    /// What the registry or the document says it is; empty if neither does.
    pub media_type: String,
}

/// What each manifest and index has, whatever else is in it.
#[derive(Deserialize)]
struct Versioned {
    #[serde(rename = "schemaVersion")]
    _schema_version: u64,
}

impl Session {
    /// A manifest from a mirror or the registry.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        max_bytes: u64,
    ) -> Result<Fetched, RegistryError> {
        self.pull(repository, async |endpoint| {
            self.manifest_at(endpoint, repository, reference, max_bytes)
                .await
        })
        .await
    }

    /// A manifest from the registry.
    pub(super) async fn manifest_in_registry(
        &self,
        repository: &Repository,
        reference: &Reference,
        max_bytes: u64,
    ) -> Result<Fetched, RegistryError> {
        let endpoint = self.registry(repository).await?;
        self.retrying(async || {
            self.manifest_at(&endpoint, repository, reference, max_bytes)
                .await
        })
        .await
    }

    /// A manifest from one server, tried once.
    pub(super) async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        reference: &Reference,
        max_bytes: u64,
    ) -> Result<Fetched, RegistryError> {
        let mut call = Call::new(
            Method::GET,
            endpoint.url(repository, &format!("manifests/{reference}")),
            vec![pull_scope(repository)],
            format!("get the manifest {}", reference.within(repository)),
        );
        call.headers
            .insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let answer = self.send(endpoint, &call).await?;
        let answer = self.expect(endpoint, answer, &[200]).await?;
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            // Another algorithm than SHA-256 says nothing here.
            Reference::Tag(_) => answer
                .header("docker-content-digest")
                .and_then(|text| text.parse().ok()),
        };
        let content_type = essence(&answer);
        let attempt = answer.attempt;
        let bytes = self.read(&attempt, answer.response, max_bytes).await?;
        let found = Digest::of(&bytes);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(RegistryError::Digest {
                attempt,
                expected,
                found,
            });
        }
        // Nothing else tells that a mirror has what it was asked for, and the next one may.
        if endpoint.is_mirror() && expected.is_none() {
            let parsed: Result<Versioned, _> = serde_json::from_slice(&bytes);
            parsed.map_err(|source| RegistryError::Document {
                attempt: attempt.clone(),
                expected: "a manifest or an index",
                source,
            })?;
        }
        Ok(Fetched {
            media_type: media_type(content_type, &bytes),
            digest: found,
            bytes,
        })
    }
}

/// The `Content-Type` without parameters.
fn essence(answer: &Answer) -> String {
    essence_of(answer.header(CONTENT_TYPE.as_str()).unwrap_or_default())
}

pub(super) fn essence_of(text: &str) -> String {
    let essence = text.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// The type a server gives, unless it gives the same to everything it has.
pub(super) fn media_type(content_type: String, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    if content_type.starts_with("application/vnd.") {
        return content_type;
    }
    let typed: Option<Typed> = serde_json::from_slice(bytes).ok();
    typed.and_then(|t| t.media_type).unwrap_or(content_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_is_accepted() {
        for known in [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST] {
            assert!(ACCEPTED.split(", ").any(|accepted| accepted == known));
        }
    }

    #[test]
    fn a_type_that_says_nothing_gives_way_to_that_of_the_document() {
        let document = br#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#;
        assert_eq!(media_type("text/plain".to_owned(), document), OCI_INDEX);
        assert_eq!(
            media_type(DOCKER_MANIFEST.to_owned(), document),
            DOCKER_MANIFEST
        );
        assert_eq!(media_type("text/plain".to_owned(), b"{"), "text/plain");
    }
}
