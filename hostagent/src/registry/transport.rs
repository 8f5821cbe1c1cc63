//! One request and its answer: authorization, redirects, limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::timeout;

use super::answer::Answer;
use super::cause;
use super::challenge::challenges;
use super::endpoint::{Endpoint, same_origin};
use super::error::{Attempt, RegistryError};
use super::redirect::Route;
use super::session::Session;
use super::tokens::Authorization;
use super::upload::UploadBody;

/// How long a registry may take to hash and store what it has been sent.
const MAX_COMMIT: Duration = Duration::from_secs(300);
/// A document takes at most this many times the patience with a silent server,
/// however little of it comes at a time.
const DOCUMENT_PATIENCE: u32 = 10;

/// A request to a registry, without its authorization.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What it needs to be allowed to do.
    pub scopes: Vec<String>,
    /// For errors: `get the manifest debian:12`.
    pub action: String,
}

impl Call {
    pub fn new(method: Method, url: Url, scopes: Vec<String>, action: String) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            scopes,
            action,
        }
    }
}

/// What a request carries.
pub(super) enum Payload {
    /// Little, perhaps nothing.
    Bytes(Bytes),
    /// A blob, as it is read.
    Upload(UploadBody),
}

impl Session {
    /// Sends a request with the authorization its server wants, and follows
    /// redirects. The authorization goes to the server's own origin, never on.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        call: &Call,
    ) -> Result<Answer, RegistryError> {
        let known = self.tokens.get(endpoint, &call.scopes);
        let answer = self.follow(endpoint, call, known.as_ref()).await?;
        let is_challenge =
            answer.status() == StatusCode::UNAUTHORIZED && same_origin(&answer.url, &endpoint.base);
        if !is_challenge {
            return Ok(answer);
        }
        if known.is_some() {
            self.tokens.forget(endpoint, &call.scopes);
        }
        let challenges = challenges(answer.response.headers());
        let authorization = self
            .authorize(endpoint, &challenges, &call.scopes, &answer.attempt)
            .await?;
        let answer = self.follow(endpoint, call, Some(&authorization)).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.tokens.forget(endpoint, &call.scopes);
        }
        Ok(answer)
    }

    async fn follow(
        &self,
        endpoint: &Endpoint,
        call: &Call,
        authorization: Option<&Authorization>,
    ) -> Result<Answer, RegistryError> {
        let mut route = Route::new();
        let mut url = call.url.clone();
        // Ends by itself: `Route::next` allows so many redirects.
        loop {
            let attempt = Attempt::new(&call.action, &url);
            let mut headers = call.headers.clone();
            let authorization = authorization.filter(|_| same_origin(&url, &endpoint.base));
            if let Some(authorization) = authorization {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            let payload = Payload::Bytes(call.body.clone());
            let response = self
                .exchange(&attempt, call.method.clone(), url.clone(), headers, payload)
                .await?;
            let next = route.next(&url, &call.method, response.status(), response.headers());
            match next {
                Ok(Some(next)) => url = next,
                Ok(None) => {
                    return Ok(Answer {
                        response,
                        url,
                        attempt,
                        with_credentials: authorization.is_some_and(|a| !a.anonymous),
                    });
                }
                Err(problem) => return Err(RegistryError::Redirect { attempt, problem }),
            }
        }
    }

    /// One HTTP request and the head of its answer.
    pub(super) async fn exchange(
        &self,
        attempt: &Attempt,
        method: Method,
        url: Url,
        headers: HeaderMap,
        payload: Payload,
    ) -> Result<Response, RegistryError> {
        let download = &self.settings.download;
        let client = self
            .clients
            .for_url(&url, &self.settings)
            .map_err(|source| RegistryError::Tls {
                attempt: attempt.clone(),
                source,
            })?;
        let request = client.request(method, url).headers(headers);
        let (request, progress) = match payload {
            Payload::Bytes(bytes) if bytes.is_empty() => (request, None),
            Payload::Bytes(bytes) => (request.body(bytes), None),
            Payload::Upload(body) => {
                let progress = body.progress();
                (request.body(reqwest::Body::wrap(body)), Some(progress))
            }
        };
        let sent = request.send();
        let patience = download.connect + download.stall;
        let outcome = match progress {
            None => timeout(patience, sent).await.ok(),
            Some(progress) => watched(sent, &progress, patience).await,
        };
        match outcome {
            Some(Ok(response)) => Ok(response),
            Some(Err(source)) => Err(request_error(attempt.clone(), source)),
            None => Err(RegistryError::Stalled {
                attempt: attempt.clone(),
                after: patience,
            }),
        }
    }

    /// The next piece of an answer's body.
    pub(super) async fn chunk(
        &self,
        attempt: &Attempt,
        response: &mut Response,
    ) -> Result<Option<Bytes>, RegistryError> {
        let after = self.settings.download.stall;
        match timeout(after, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(source)) => Err(request_error(attempt.clone(), source)),
            Err(_) => Err(RegistryError::Stalled {
                attempt: attempt.clone(),
                after,
            }),
        }
    }

    /// The whole body of an answer, if it has at most `limit` bytes.
    pub(super) async fn read(
        &self,
        attempt: &Attempt,
        mut response: Response,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let too_large = || RegistryError::TooLarge {
            attempt: attempt.clone(),
            limit,
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_large());
        }
        let after = self.settings.download.stall * DOCUMENT_PATIENCE;
        let whole = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = self.chunk(attempt, &mut response).await? {
                if (bytes.len() + chunk.len()) as u64 > limit {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        };
        timeout(after, whole).await.unwrap_or_else(|_| {
            Err(RegistryError::Stalled {
                attempt: attempt.clone(),
                after,
            })
        })
    }
}

/// Waits for an upload's answer for as long as the upload gets on, and then for
/// the registry to store it.
async fn watched<T>(
    work: impl Future<Output = T>,
    progress: &Arc<AtomicU64>,
    patience: Duration,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut before = progress.load(Ordering::Relaxed);
    // Ends: each turn either saw progress, which the blob's size limits, or is the last.
    loop {
        match timeout(patience, work.as_mut()).await {
            Ok(outcome) => return Some(outcome),
            Err(_) => {
                let now = progress.load(Ordering::Relaxed);
                if now == UploadBody::ALL {
                    return timeout(MAX_COMMIT, work).await.ok();
                }
                if now == before {
                    return None;
                }
                before = now;
            }
        }
    }
}

/// Why there was no answer. The URL is left out: it may hold signatures.
fn request_error(attempt: Attempt, source: reqwest::Error) -> RegistryError {
    let source = source.without_url();
    if cause::is_certificate(&source) {
        return RegistryError::Certificate { attempt, source };
    }
    if cause::is_unknown_host(&source) {
        return RegistryError::UnknownHost { attempt, source };
    }
    RegistryError::Request { attempt, source }
}
