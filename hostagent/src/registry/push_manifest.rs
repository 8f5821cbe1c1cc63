//! Manifests that are sent to a registry, and the lists of what refers to them.
//!
//! Source: distribution specification 1.1, "Pushing Manifests" and "Referrers Tag
//! Schema".

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use super::endpoint::{Endpoint, Reference, Repository};
use super::error::{Attempt, RegistryError};
use super::manifests::OCI_INDEX;
use super::session::{Session, push_scope};
use super::transport::Call;
use crate::image::digest::Digest;
use crate::image::manifest::MAX_DOCUMENT_BYTES;

impl Session {
    /// Sends a manifest. If it has a subject, and the registry does not say that it
    /// lists referrers by itself (`OCI-Subject`), it is listed for it.
    pub(super) async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        bytes: &[u8],
        media_type: &str,
    ) -> Result<Digest, RegistryError> {
        let endpoint = self.registry(repository).await?;
        let lists_referrers = self
            .retrying(async || {
                self.put_manifest(&endpoint, repository, reference, bytes, media_type)
                    .await
            })
            .await?;
        let digest = Digest::of(bytes);
        if !lists_referrers && let Some((subject, entry)) = referrer(bytes, media_type, digest) {
            self.list_referrer(&endpoint, repository, subject, &entry)
                .await?;
        }
        Ok(digest)
    }

    /// Whether the answer has `OCI-Subject`.
    async fn put_manifest(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        reference: &Reference,
        bytes: &[u8],
        media_type: &str,
    ) -> Result<bool, RegistryError> {
        let mut call = Call::new(
            Method::PUT,
            endpoint.url(repository, &format!("manifests/{reference}")),
            vec![push_scope(repository)],
            format!("push the manifest {}", reference.within(repository)),
        );
        let attempt = Attempt::new(&call.action, &call.url);
        let Ok(kind) = HeaderValue::from_str(media_type) else {
            return Err(RegistryError::Header {
                attempt,
                header: "Content-Type",
            });
        };
        call.headers.insert(CONTENT_TYPE, kind);
        call.body = bytes.to_vec().into();
        let answer = self.send(endpoint, &call).await?;
        let answer = self.expect(endpoint, answer, &[201]).await?;
        let stored = answer.header("docker-content-digest");
        let stored: Option<Digest> = stored.and_then(|text| text.parse().ok());
        let expected = Digest::of(bytes);
        if let Some(found) = stored.filter(|stored| *stored != expected) {
            return Err(RegistryError::Digest {
                attempt,
                expected,
                found,
            });
        }
        Ok(answer.header("oci-subject").is_some())
    }

    /// Adds a manifest to the index `sha256-HEX` of its subject, and leaves all
    /// else in it as it is. Two clients that do so at once may overwrite each
    /// other; the specification has no remedy.
    async fn list_referrer(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        subject: Digest,
        entry: &Value,
    ) -> Result<(), RegistryError> {
        let tag = Reference::referrers_of(subject);
        let known = self
            .retrying(async || {
                let known = self.manifest_at(endpoint, repository, &tag, MAX_DOCUMENT_BYTES);
                match known.await {
                    Ok(known) => Ok(Some(known)),
                    Err(RegistryError::NotFound { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .await?;
        let url = endpoint.url(repository, &format!("manifests/{tag}"));
        let action = format!("update {}", tag.within(repository));
        let attempt = Attempt::new(&action, &url);
        let known = known.as_ref().map(|known| known.bytes.as_slice());
        let updated = with_referrer(known, entry).map_err(|source| RegistryError::Document {
            attempt: attempt.clone(),
            expected: "an image index",
            source,
        })?;
        let Some(updated) = updated else {
            return Ok(());
        };
        if updated.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(RegistryError::TooLarge {
                attempt,
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        self.retrying(async || {
            self.put_manifest(endpoint, repository, &tag, &updated, OCI_INDEX)
                .await
        })
        .await?;
        Ok(())
    }
}

/// The subject of a manifest, and the entry that lists the manifest there
/// (distribution specification 1.1, "Pushing Manifests with Subject").
fn referrer(bytes: &[u8], media_type: &str, digest: Digest) -> Option<(Digest, Value)> {
    let manifest: Value = serde_json::from_slice(bytes).ok()?;
    let subject = manifest["subject"]["digest"].as_str()?.parse().ok()?;
    let mut entry = json!({
        "mediaType": media_type,
        "digest": digest,
        "size": bytes.len(),
    });
    let own_type = manifest["artifactType"].as_str().filter(|t| !t.is_empty());
    let artifact_type = own_type.or_else(|| manifest["config"]["mediaType"].as_str());
    if let Some(artifact_type) = artifact_type {
        entry["artifactType"] = artifact_type.into();
    }
    if manifest["annotations"].is_object() {
        entry["annotations"] = manifest["annotations"].clone();
    }
    Some((subject, entry))
}

/// The index with `entry` in it; `None` if it is there already.
fn with_referrer(
    index: Option<&[u8]>,
    entry: &Value,
) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let mut index: serde_json::Map<String, Value> = match index {
        Some(bytes) => serde_json::from_slice(bytes)?,
        None => serde_json::Map::new(),
    };
    index.entry("schemaVersion").or_insert(json!(2));
    index.entry("mediaType").or_insert(json!(OCI_INDEX));
    let manifests = index.entry("manifests").or_insert(json!([]));
    let mut entries: Vec<Value> = match manifests.take() {
        Value::Null => Vec::new(),
        entries => serde_json::from_value(entries)?,
    };
    if entries
        .iter()
        .any(|known| known["digest"] == entry["digest"])
    {
        return Ok(None);
    }
    entries.push(entry.clone());
    *manifests = entries.into();
    serde_json::to_vec(&index).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_what_its_manifest_says() {
        let subject = Digest::of(b"subject");
        let manifest = |artifact_type: &str| {
            json!({
                "artifactType": artifact_type,
                "config": {"mediaType": "config/type"},
                "subject": {"digest": subject},
                "annotations": {"a": "b"},
            })
            .to_string()
        };
        for (own, expected) in [("sig/type", "sig/type"), ("", "config/type")] {
            let bytes = manifest(own).into_bytes();
            let digest = Digest::of(&bytes);
            let (found, entry) = referrer(&bytes, "kind", digest).unwrap();
            assert_eq!(found, subject);
            assert_eq!(entry["artifactType"], expected);
            assert_eq!(entry["annotations"]["a"], "b");
            assert_eq!(entry["size"], bytes.len());
        }
        assert!(referrer(b"{}", "kind", subject).is_none());
        assert!(referrer(b"not json", "kind", subject).is_none());
    }

    #[test]
    fn an_index_keeps_what_it_has() {
        let old = json!({"schemaVersion": 2, "x": 1, "manifests": [{"digest": "d", "y": 2}]});
        let entry = json!({"digest": "e"});
        let updated = with_referrer(Some(old.to_string().as_bytes()), &entry)
            .unwrap()
            .unwrap();
        let updated_value: Value = serde_json::from_slice(&updated).unwrap();
        assert_eq!(updated_value["x"], 1);
        assert_eq!(
            updated_value["manifests"],
            json!([{"digest": "d", "y": 2}, {"digest": "e"}])
        );
        assert!(with_referrer(Some(&updated), &entry).unwrap().is_none());
    }

    #[test]
    fn a_new_index_is_one_and_a_broken_one_is_not_overwritten() {
        let entry = json!({"digest": "e"});
        let new: Value =
            serde_json::from_slice(&with_referrer(None, &entry).unwrap().unwrap()).unwrap();
        assert_eq!(new["mediaType"], OCI_INDEX);
        for broken in ["[]", "{\"manifests\": 3}", "{"] {
            assert!(
                with_referrer(Some(broken.as_bytes()), &entry).is_err(),
                "{broken}"
            );
        }
    }
}
