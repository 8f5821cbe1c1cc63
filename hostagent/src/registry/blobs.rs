//! Blobs that fit into memory, and ranges of blobs.

use std::ops::Range;
use std::sync::Arc;

use reqwest::Method;
use reqwest::header::RANGE;

use super::content_range::ContentRange;
use super::download::{Download, blob_call, range, wrong_range};
use super::endpoint::{Endpoint, Repository};
use super::error::{Attempt, RegistryError};
use super::provenance::Provenance;
use super::session::Session;
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;

/// The most bytes of one range.
pub const MAX_RANGE_BYTES: u64 = 64 << 20;

/// A range of a blob. Only the caller's own hashes tell whether it is right.
#[derive(Debug)]
pub struct BlobRange {
    /// As many bytes as were asked for.
    pub bytes: Vec<u8>,
    /// Who has given them.
    pub provenance: Provenance,
}

/// The mirrors that may have a blob, and its registry at the end.
pub(super) async fn sources(
    session: &Session,
    repository: &Repository,
    digest: Digest,
) -> Result<Vec<Endpoint>, RegistryError> {
    let mut sources = session.blob_mirrors(repository, digest);
    sources.push(session.registry(repository).await?);
    Ok(sources)
}

/// A whole blob of at most `max_bytes`, verified.
pub(super) async fn blob(
    session: &Arc<Session>,
    repository: &Repository,
    descriptor: &Descriptor,
    max_bytes: u64,
) -> Result<Vec<u8>, RegistryError> {
    let mut sources = sources(session, repository, descriptor.digest).await?;
    let registry = sources.pop();
    for mirror in sources {
        match blob_at(session, repository, descriptor, max_bytes, mirror.clone()).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => session.note_failure(&mirror, &error),
        }
    }
    match registry {
        Some(registry) => blob_at(session, repository, descriptor, max_bytes, registry).await,
        None => Err(RegistryError::NoHost(repository.domain().to_owned())),
    }
}

async fn blob_at(
    session: &Arc<Session>,
    repository: &Repository,
    descriptor: &Descriptor,
    max_bytes: u64,
    source: Endpoint,
) -> Result<Vec<u8>, RegistryError> {
    let call = blob_call(&source, repository, descriptor.digest, Method::GET);
    let attempt = Attempt::new(&call.action, &call.url);
    if descriptor.size > max_bytes {
        return Err(RegistryError::TooLarge {
            attempt,
            limit: max_bytes,
        });
    }
    let (digest, size) = (descriptor.digest, descriptor.size);
    let mut download = Download::new(session, repository, digest, size, vec![source]);
    let mut bytes = Vec::new();
    while let Some(chunk) = download.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    let found = Digest::of(&bytes);
    if found != descriptor.digest {
        return Err(RegistryError::Digest {
            attempt,
            expected: descriptor.digest,
            found,
        });
    }
    Ok(bytes)
}

pub(super) async fn blob_range(
    session: &Arc<Session>,
    repository: &Repository,
    digest: Digest,
    bytes: Range<u64>,
) -> Result<BlobRange, RegistryError> {
    let provenance = Provenance::new(session, digest);
    if bytes.is_empty() {
        let bytes = Vec::new();
        return Ok(BlobRange { bytes, provenance });
    }
    let mirrors = session.blob_mirrors(repository, digest);
    let bytes = session
        .pull_from(mirrors, repository, async |endpoint| {
            let range = range_at(session, endpoint, repository, digest, &bytes).await?;
            provenance.add(endpoint);
            Ok(range)
        })
        .await?;
    Ok(BlobRange { bytes, provenance })
}

async fn range_at(
    session: &Session,
    endpoint: &Endpoint,
    repository: &Repository,
    digest: Digest,
    bytes: &Range<u64>,
) -> Result<Vec<u8>, RegistryError> {
    let asked = format!("bytes {}-{}", bytes.start, bytes.end - 1);
    let length = bytes.end - bytes.start;
    let mut call = blob_call(endpoint, repository, digest, Method::GET);
    call.action = format!("get {asked} of the blob {digest} of {repository}");
    call.headers
        .insert(RANGE, range(bytes.start, Some(bytes.end - 1)));
    if length > MAX_RANGE_BYTES {
        return Err(RegistryError::TooLarge {
            attempt: Attempt::new(&call.action, &call.url),
            limit: MAX_RANGE_BYTES,
        });
    }
    let answer = session.send(endpoint, &call).await?;
    let answer = session.expect(endpoint, answer, &[200, 206]).await?;
    if answer.status().as_u16() == 200 {
        // Right all the same if the part is the whole.
        if bytes.start > 0 || answer.response.content_length() != Some(length) {
            return Err(RegistryError::NoRanges {
                attempt: answer.attempt,
            });
        }
    } else {
        let found = ContentRange::of(answer.response.headers());
        if !found.is_some_and(|found| found.is(bytes, None)) {
            return Err(wrong_range(&answer, asked));
        }
    }
    let attempt = answer.attempt;
    let part = session.read(&attempt, answer.response, length).await?;
    if (part.len() as u64) < length {
        return Err(RegistryError::TooShort {
            attempt,
            expected: length,
            found: part.len() as u64,
        });
    }
    Ok(part)
}
