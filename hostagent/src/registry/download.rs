//! A blob as it arrives: over several requests, if connections break.
//!
//! Source: distribution specification 1.1, "Pulling blobs"; RFC 9110, section 14,
//! for ranges.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use reqwest::header::{HeaderValue, RANGE};
use reqwest::{Method, Response};

use super::answer::Answer;
use super::content_range::ContentRange;
use super::endpoint::{Endpoint, Repository};
use super::error::{Attempt, RegistryError};
use super::provenance::Provenance;
use super::retry::Backoff;
use super::session::{Session, pull_scope};
use super::text::printable;
use super::transport::Call;
use crate::image::digest::Digest;

/// A connection that broke after this many bytes was worth it: the count of
/// failures begins anew.
const WORTHWHILE: u64 = 64 << 10;

/// The content of a blob, of exactly the length its descriptor gives. Its digest is
/// not checked here.
pub(super) struct Download {
    session: Arc<Session>,
    repository: Repository,
    digest: Digest,
    size: u64,
    /// Mirrors, then the registry; the first is in use.
    sources: VecDeque<Endpoint>,
    /// Who has given what was handed out.
    provenance: Provenance,
    body: Option<Body>,
    /// The bytes handed out.
    position: u64,
    /// `position` at the last failure.
    failed_at: u64,
    failures: u32,
    backoff: Backoff,
    is_complete: bool,
}

/// What arrives now.
struct Body {
    response: Response,
    attempt: Attempt,
    /// Bytes at its beginning that were handed out before.
    skip: u64,
}

impl Download {
    pub fn new(
        session: &Arc<Session>,
        repository: &Repository,
        digest: Digest,
        size: u64,
        sources: Vec<Endpoint>,
    ) -> Self {
        Self {
            session: Arc::clone(session),
            repository: repository.clone(),
            digest,
            size,
            sources: sources.into(),
            provenance: Provenance::new(session, digest),
            body: None,
            position: 0,
            failed_at: 0,
            failures: 0,
            backoff: Backoff::new(session.settings.download.backoff),
            is_complete: false,
        }
    }

    /// Who has given what was handed out, now and later.
    pub fn provenance(&self) -> Provenance {
        self.provenance.clone()
    }

    /// Makes the first request, so that what is wrong with it is known early.
    pub async fn begin(&mut self) -> Result<(), RegistryError> {
        // Ends: `recover` counts.
        while self.body.is_none() {
            match self.open().await {
                Ok(body) => self.body = Some(body),
                Err(error) => self.recover(error).await?,
            }
        }
        Ok(())
    }

    /// The next bytes, never empty; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.is_complete {
            return Ok(None);
        }
        // Ends: `recover` counts, and what is skipped is bounded by the size.
        loop {
            match self.step().await {
                Ok(Some(chunk)) if chunk.is_empty() => {}
                Ok(Some(chunk)) => {
                    self.position += chunk.len() as u64;
                    if let Some(source) = self.sources.front() {
                        self.provenance.add(source);
                    }
                    return Ok(Some(chunk));
                }
                Ok(None) => {
                    self.is_complete = true;
                    self.body = None;
                    return Ok(None);
                }
                Err(error) => {
                    self.body = None;
                    self.recover(error).await?;
                    // A mirror had more than it should. Whether all before that is right
                    // the digest tells; there is nothing left to ask others for.
                    if self.position == self.size {
                        self.is_complete = true;
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let body = self.open().await?;
                self.body.insert(body)
            }
        };
        match self.session.chunk(&body.attempt, &mut body.response).await {
            Ok(Some(mut chunk)) => {
                let skipped = body.skip.min(chunk.len() as u64);
                body.skip -= skipped;
                chunk.advance(skipped as usize);
                if chunk.len() as u64 > self.size - self.position {
                    return Err(RegistryError::TooLong {
                        attempt: body.attempt.clone(),
                        expected: self.size,
                    });
                }
                Ok(Some(chunk))
            }
            Ok(None) if self.position == self.size && body.skip == 0 => Ok(None),
            Ok(None) => Err(RegistryError::TooShort {
                attempt: body.attempt.clone(),
                expected: self.size,
                found: self.position - body.skip,
            }),
            // Everything is there; how the connection ended is of no interest.
            Err(_) if self.position == self.size && body.skip == 0 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for the blob, or for what is left of it.
    async fn open(&self) -> Result<Body, RegistryError> {
        let Some(endpoint) = self.sources.front() else {
            return Err(RegistryError::NoHost(self.repository.domain().to_owned()));
        };
        let mut call = blob_call(endpoint, &self.repository, self.digest, Method::GET);
        if self.position > 0 {
            call.headers.insert(RANGE, range(self.position, None));
        }
        let answer = self.session.send(endpoint, &call).await?;
        match answer.status().as_u16() {
            206 if self.position > 0 => self.rest(answer),
            416 if self.position > 0 => Err(RegistryError::TooShort {
                attempt: answer.attempt,
                expected: self.size,
                found: self.position,
            }),
            _ => {
                let answer = self.session.expect(endpoint, answer, &[200]).await?;
                self.whole(answer)
            }
        }
    }

    /// An answer that has the blob from its beginning.
    fn whole(&self, answer: Answer) -> Result<Body, RegistryError> {
        let (attempt, expected) = (answer.attempt, self.size);
        match answer.response.content_length() {
            Some(found) if found < expected => Err(RegistryError::TooShort {
                attempt,
                expected,
                found,
            }),
            Some(found) if found > expected => Err(RegistryError::TooLong { attempt, expected }),
            _ => Ok(Body {
                response: answer.response,
                attempt,
                skip: self.position,
            }),
        }
    }

    /// An answer that goes on where the last one broke off. It may have less than
    /// all that is left (RFC 9110, section 15.3.7); then the next request goes on.
    fn rest(&self, answer: Answer) -> Result<Body, RegistryError> {
        let found = ContentRange::of(answer.response.headers()).filter(|found| {
            let bytes = &found.bytes;
            bytes.start == self.position
                && bytes.end <= self.size
                && found.whole.is_none_or(|whole| whole == self.size)
        });
        if found.is_none() {
            return Err(wrong_range(
                &answer,
                format!("bytes {}-{} of {}", self.position, self.size - 1, self.size),
            ));
        }
        Ok(Body {
            response: answer.response,
            attempt: answer.attempt,
            skip: 0,
        })
    }

    /// Gets ready for another try, or gives up. A mirror is tried once.
    async fn recover(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let progress = self.position - self.failed_at;
        self.failed_at = self.position;
        if self.sources.len() > 1
            && let Some(mirror) = self.sources.pop_front()
        {
            self.session.note_failure(&mirror, &error);
            return Ok(());
        }
        let download = &self.session.settings.download;
        if self.sources.front().is_some_and(Endpoint::is_mirror) {
            return Err(error);
        }
        if progress >= WORTHWHILE {
            self.failures = 0;
            self.backoff = Backoff::new(download.backoff);
        }
        self.failures += 1;
        if self.failures >= download.attempts {
            return Err(error);
        }
        // A body without a length ends the same whether it is complete or cut.
        if progress > 0 && matches!(error, RegistryError::TooShort { .. }) {
            return Ok(());
        }
        match self.backoff.after(&error) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
        Ok(())
    }
}

/// A request about a blob.
pub(super) fn blob_call(
    endpoint: &Endpoint,
    repository: &Repository,
    digest: Digest,
    method: Method,
) -> Call {
    Call::new(
        method,
        endpoint.url(repository, &format!("blobs/{digest}")),
        vec![pull_scope(repository)],
        format!("get the blob {digest} of {repository}"),
    )
}

/// `bytes=FIRST-LAST`, or to the end.
pub(super) fn range(first: u64, last: Option<u64>) -> HeaderValue {
    let last = last.map(|last| last.to_string()).unwrap_or_default();
    // Digits and a hyphen are always a header's value.
    HeaderValue::from_str(&format!("bytes={first}-{last}"))
        .unwrap_or(HeaderValue::from_static("bytes=0-"))
}

pub(super) fn wrong_range(answer: &Answer, asked: String) -> RegistryError {
    let answered = answer.header("content-range").unwrap_or_default();
    RegistryError::WrongRange {
        attempt: answer.attempt.clone(),
        asked,
        answered: printable(answered.as_bytes(), 100),
    }
}
