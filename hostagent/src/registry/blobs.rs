//! Blobs that fit into memory, and parts of blobs.

use std::ops::Range;
use std::sync::Arc;

use reqwest::Method;
use reqwest::header::RANGE;

use super::content_range::ContentRange;
use super::download::{Download, blob_call, range, wrong_range};
use super::endpoint::{Endpoint, Repository};
use super::error::{Attempt, RegistryError};
use super::session::Session;
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;

/// The most bytes of one part.
pub const MAX_RANGE_BYTES: u64 = 64 << 20;

/// The mirrors of a repository, and its registry at the end.
pub(super) async fn sources(
    session: &Session,
    repository: &Repository,
) -> Result<Vec<Endpoint>, RegistryError> {
    let mut sources = session.mirrors(repository);
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
    let mut sources = sources(session, repository).await?;
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

/// Part of a blob. Nothing tells whether it is right but the caller's own hashes.
pub(super) async fn blob_range(
    session: &Session,
    repository: &Repository,
    digest: Digest,
    bytes: Range<u64>,
) -> Result<Vec<u8>, RegistryError> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    session
        .pull(repository, async |endpoint| {
            range_at(session, endpoint, repository, digest, &bytes).await
        })
        .await
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
