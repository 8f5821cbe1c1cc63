//! What refers to a manifest: signatures, attestations, bills of materials.
//!
//! Source: distribution specification 1.1, "Listing Referrers" and "Unavailable
//! Referrers API".

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::endpoint::{Endpoint, Reference, Repository, same_origin};
use super::error::RegistryError;
use super::manifests::OCI_INDEX;
use super::session::{Session, pull_scope};
use super::transport::Call;
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, MAX_DOCUMENT_BYTES, MAX_INDEX_ENTRIES};

/// The most pages of one list.
const MAX_PAGES: usize = 32;

/// An image index, of which only the entries matter. `null` is an empty list, as Go
/// writes it.
#[derive(Deserialize)]
struct Page {
    manifests: Option<Vec<Descriptor>>,
}

impl Session {
    /// What refers to a manifest, and is of a type if one is given. A mirror that
    /// knows none does not speak for the registry: many cannot list them.
    pub(super) async fn referrers(
        &self,
        repository: &Repository,
        digest: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let at = async |endpoint: &Endpoint| {
            self.referrers_at(endpoint, repository, digest, artifact_type)
                .await
        };
        for mirror in self.mirrors(repository) {
            match at(&mirror).await {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => {}
                Err(error) => self.note_failure(&mirror, &error),
            }
        }
        let endpoint = self.registry(repository).await?;
        self.retrying(async || at(&endpoint).await).await
    }

    async fn referrers_at(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        digest: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut url = endpoint.url(repository, &format!("referrers/{digest}"));
        if let Some(artifact_type) = artifact_type {
            url.query_pairs_mut()
                .append_pair("artifactType", artifact_type);
        }
        let action = format!("list what refers to {repository}@{digest}");
        let mut found = Vec::new();
        for page in 0..MAX_PAGES {
            let scopes = vec![pull_scope(repository)];
            let mut call = Call::new(Method::GET, url.clone(), scopes, action.clone());
            call.headers
                .insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
            let answer = self.send(endpoint, &call).await?;
            if page == 0 && answer.status().as_u16() == 404 {
                found = self.tagged(endpoint, repository, digest).await?;
                retain(&mut found, artifact_type);
                return Ok(found);
            }
            let answer = self.expect(endpoint, answer, &[200]).await?;
            let attempt = answer.attempt;
            let next = next_page(&answer.url, answer.response.headers());
            let bytes = self
                .read(&attempt, answer.response, MAX_DOCUMENT_BYTES)
                .await?;
            let entries: Page =
                serde_json::from_slice(&bytes).map_err(|source| RegistryError::Document {
                    attempt: attempt.clone(),
                    expected: "an image index",
                    source,
                })?;
            found.extend(entries.manifests.unwrap_or_default());
            retain(&mut found, artifact_type);
            if found.len() > MAX_INDEX_ENTRIES {
                return Err(RegistryError::TooMany {
                    attempt,
                    limit: MAX_INDEX_ENTRIES,
                    what: "entries",
                });
            }
            match next {
                None => return Ok(found),
                Some(next) if same_origin(&next, &endpoint.base) => url = next,
                Some(_) => {
                    return Err(RegistryError::Header {
                        attempt,
                        header: "Link",
                    });
                }
            }
        }
        Err(RegistryError::TooMany {
            attempt: super::error::Attempt::new(&action, &url),
            limit: MAX_PAGES,
            what: "pages",
        })
    }

    /// What the index under the tag `sha256-HEX` lists, if there is one.
    async fn tagged(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let tag = Reference::referrers_of(digest);
        let index = match self
            .manifest_at(endpoint, repository, &tag, MAX_DOCUMENT_BYTES)
            .await
        {
            Ok(index) => index,
            Err(RegistryError::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let url = endpoint.url(repository, &format!("manifests/{tag}"));
        let action = format!("read {}", tag.within(repository));
        let attempt = super::error::Attempt::new(&action, &url);
        let page: Page =
            serde_json::from_slice(&index.bytes).map_err(|source| RegistryError::Document {
                attempt: attempt.clone(),
                expected: "an image index",
                source,
            })?;
        let found = page.manifests.unwrap_or_default();
        if found.len() > MAX_INDEX_ENTRIES {
            return Err(RegistryError::TooMany {
                attempt,
                limit: MAX_INDEX_ENTRIES,
                what: "entries",
            });
        }
        Ok(found)
    }
}

/// A registry may filter, or not; the tag schema cannot.
fn retain(found: &mut Vec<Descriptor>, artifact_type: Option<&str>) {
    if let Some(wanted) = artifact_type {
        found.retain(|entry| entry.artifact_type.as_deref() == Some(wanted));
    }
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
pub(super) fn next_page(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let links = headers.get_all(LINK).iter().take(16);
    let mut links = links.filter_map(|value| value.to_str().ok());
    links.find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split([';', ',']).any(|parameter| {
            let Some((name, value)) = parameter.split_once('=') else {
                return false;
            };
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
        });
        is_next.then(|| url.join(target).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_relative_or_absolute() {
        let url = Url::parse("https://a.example/v2/b/referrers/x").unwrap();
        let next = |link: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, HeaderValue::from_str(link).unwrap());
            next_page(&url, &headers).map(String::from)
        };
        let expected = Some("https://a.example/v2/b/referrers/x?page=2".to_owned());
        assert_eq!(next("<?page=2>; rel=\"next\""), expected);
        assert_eq!(
            next("<https://a.example/v2/b/referrers/x?page=2>;rel=next"),
            expected
        );
        assert_eq!(next("<?page=2>; rel=\"prev\""), None);
        assert_eq!(next("?page=2; rel=next"), None);
    }
}
