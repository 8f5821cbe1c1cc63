//! Blobs that are sent to a registry.
//!
//! Source: distribution specification 1.1, "Pushing blobs".

use std::io::{self, Read};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};

use super::answer::Answer;
use super::download::blob_call;
use super::endpoint::{Endpoint, Repository, same_origin};
use super::error::{Attempt, RegistryError};
use super::redirect::{self, Route};
use super::session::{Session, pull_scope, push_scope};
use super::transport::{Call, Payload};
use super::upload::UploadBody;
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;

/// Opens the content of a blob, from its beginning each time.
pub type Open<'a> = &'a dyn Fn() -> io::Result<Box<dyn Read + Send>>;

/// How a blob came to be in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    AlreadyThere,
    /// The registry took it from another repository of its own.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// Where an upload goes on.
enum Begun {
    Mounted,
    At(Url),
}

impl Session {
    /// Whether a repository has a blob.
    pub(super) async fn has_blob(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        let endpoint = self.registry(repository).await?;
        let scopes = [pull_scope(repository)];
        self.retrying(async || {
            self.has_blob_at(&endpoint, repository, digest, &scopes)
                .await
        })
        .await
    }

    async fn has_blob_at(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        digest: Digest,
        scopes: &[String],
    ) -> Result<bool, RegistryError> {
        let mut call = blob_call(endpoint, repository, digest, Method::HEAD);
        call.action = format!("look for the blob {digest} in {repository}");
        call.scopes = scopes.to_vec();
        let answer = self.send(endpoint, &call).await?;
        let answer = self.expect(endpoint, answer, &[200, 404]).await?;
        Ok(answer.status().as_u16() == 200)
    }

    /// Sends a blob, unless the registry has it there or in `mount_from`.
    pub(super) async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        mount_from: Option<&Repository>,
        open: Open<'_>,
    ) -> Result<Pushed, RegistryError> {
        let endpoint = self.registry(repository).await?;
        // A blob can only be mounted from a repository of the same registry.
        let from = mount_from.filter(|from| from.domain() == repository.domain());
        self.retrying(async || {
            self.push_blob_at(&endpoint, repository, descriptor, from, open)
                .await
        })
        .await
    }

    async fn push_blob_at(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        descriptor: &Descriptor,
        from: Option<&Repository>,
        open: Open<'_>,
    ) -> Result<Pushed, RegistryError> {
        let digest = descriptor.digest;
        let mut scopes = vec![push_scope(repository)];
        scopes.extend(from.map(pull_scope));
        if self
            .has_blob_at(endpoint, repository, digest, &scopes)
            .await?
        {
            return Ok(Pushed::AlreadyThere);
        }
        let action = format!("push the blob {digest} to {repository}");
        let url = endpoint.url(repository, "blobs/uploads/");
        let mut call = Call::new(Method::POST, url, scopes, action);
        if let Some(from) = from {
            call.url
                .query_pairs_mut()
                .append_pair("mount", &digest.to_string())
                .append_pair("from", from.path());
        }
        let mut location = match self.begin_upload(endpoint, &call).await? {
            Begun::Mounted => return Ok(Pushed::Mounted),
            Begun::At(location) => location,
        };
        location
            .query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        self.upload(endpoint, &call, location, descriptor.size, open)
            .await?;
        Ok(Pushed::Uploaded)
    }

    async fn begin_upload(&self, endpoint: &Endpoint, call: &Call) -> Result<Begun, RegistryError> {
        let answer = self.send(endpoint, call).await?;
        let answer = self.expect(endpoint, answer, &[201, 202]).await?;
        if answer.status().as_u16() == 201 {
            return Ok(Begun::Mounted);
        }
        let attempt = answer.attempt;
        let Some(location) = redirect::target(&answer.url, answer.response.headers()) else {
            return Err(RegistryError::Header {
                attempt,
                header: "Location",
            });
        };
        match redirect::check_scheme(&answer.url, &location) {
            Ok(()) => Ok(Begun::At(location)),
            Err(problem) => Err(RegistryError::Redirect { attempt, problem }),
        }
    }

    /// Sends the content in one request ("POST then PUT").
    async fn upload(
        &self,
        endpoint: &Endpoint,
        call: &Call,
        url: Url,
        size: u64,
        open: Open<'_>,
    ) -> Result<(), RegistryError> {
        let attempt = Attempt::new(&call.action, &url);
        let content = |source| RegistryError::Content {
            attempt: attempt.clone(),
            source,
        };
        let body = UploadBody::new(open().map_err(content)?, size);
        let fault = body.fault();
        let mut headers = HeaderMap::new();
        let octets = HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, octets);
        let is_ours = same_origin(&url, &endpoint.base);
        let known = self.tokens.get(endpoint, &call.scopes);
        let authorization = known.filter(|_| is_ours);
        if let Some(authorization) = &authorization {
            headers.insert(AUTHORIZATION, authorization.header.clone());
        }
        let outcome = self
            .exchange(
                &attempt,
                Method::PUT,
                url.clone(),
                headers,
                Payload::Upload(body),
            )
            .await;
        if let Some(source) = fault.take() {
            return Err(content(source));
        }
        let response = outcome?;
        let (status, headers) = (response.status(), response.headers());
        if status.as_u16() == 401 && is_ours && authorization.is_some() {
            // The next try begins with a new token.
            self.tokens.forget(endpoint, &call.scopes);
            return Err(RegistryError::Expired { attempt });
        }
        if let Err(problem) = Route::new().next(&url, &Method::PUT, status, headers) {
            return Err(RegistryError::Redirect { attempt, problem });
        }
        let answer = Answer {
            response,
            url,
            attempt,
            with_credentials: authorization.is_some_and(|a| !a.anonymous),
        };
        self.expect(endpoint, answer, &[201, 204]).await?;
        Ok(())
    }
}
