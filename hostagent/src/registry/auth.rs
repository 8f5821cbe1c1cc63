//! Answers to the challenges of registries: Basic, and Bearer tokens.
//!
//! Source: the distribution project's "Token Authentication Specification" and
//! "OAuth2 Token Authentication"; RFC 7617 and RFC 6750 for the headers.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::credentials::Credential;
use super::endpoint::{Endpoint, shown};
use super::error::{Attempt, ChallengeProblem, RegistryError};
use super::secret::Secret;
use super::session::Session;
use super::tokens::Authorization;
use super::transport::Payload;

/// The longest answer of a token server.
const MAX_TOKEN_BYTES: u64 = 256 << 10;
/// What a token is good for if its server does not say ("expires_in").
const DEFAULT_LIFETIME: u64 = 60;
/// No token is used for longer.
const MAX_LIFETIME: u64 = 24 * 60 * 60;
/// What the OAuth 2.0 form calls this program.
const CLIENT_ID: &str = "mote";
/// The most scopes of a challenge that are asked for.
const MAX_SCOPES: usize = 16;

/// What a token server answers.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl Session {
    /// The answer to the challenges of `endpoint`, remembered for the next requests.
    pub(super) async fn authorize(
        &self,
        endpoint: &Endpoint,
        challenges: &[Challenge],
        scopes: &[String],
        attempt: &Attempt,
    ) -> Result<Authorization, RegistryError> {
        let find = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        let problem = |problem| RegistryError::Challenge {
            attempt: attempt.clone(),
            problem,
        };
        let (bearer, basic) = (find("bearer"), find("basic"));
        if bearer.is_none() && basic.is_none() {
            return Err(problem(match challenges.first() {
                Some(other) => ChallengeProblem::Scheme(other.scheme.chars().take(40).collect()),
                None => ChallengeProblem::Malformed,
            }));
        }
        let credential = match &endpoint.credentials_of {
            Some(registry) => self.credential(registry).await?,
            None => None,
        };
        let (authorization, lifetime) = if let Some(challenge) = bearer {
            let realm = realm(challenge, endpoint).map_err(problem)?;
            let request = TokenRequest {
                realm,
                service: challenge.parameter("service"),
                scopes: wanted_scopes(challenge, scopes),
                attempt,
            };
            let (token, lifetime) = self.token(endpoint, &request, credential.as_ref()).await?;
            let header = sensitive(&format!("Bearer {}", token.expose()));
            let host = || ChallengeProblem::NoToken(shown(&request.realm));
            let authorization = Authorization {
                header: header.ok_or_else(|| problem(host()))?,
                anonymous: credential.is_none(),
            };
            (authorization, Some(lifetime))
        } else {
            match &credential {
                Some(Credential::Password { username, password }) => {
                    let header = basic_header(username, password)
                        .ok_or_else(|| problem(ChallengeProblem::Malformed))?;
                    let authorization = Authorization {
                        header,
                        anonymous: false,
                    };
                    (authorization, None)
                }
                Some(Credential::IdentityToken(_)) => {
                    return Err(problem(ChallengeProblem::Scheme(
                        "Basic authentication, which an identity token cannot give".to_owned(),
                    )));
                }
                None => return Err(self.refused(endpoint, true, attempt.clone(), Vec::new())),
            }
        };
        self.tokens
            .put(endpoint, scopes, authorization.clone(), lifetime);
        Ok(authorization)
    }

    /// The credentials for a registry. Reading them may mean to wait for a helper.
    async fn credential(&self, registry: &str) -> Result<Option<Credential>, RegistryError> {
        let failed = |source| RegistryError::Credentials {
            registry: registry.to_owned(),
            source,
        };
        let (store, domain) = (self.credentials.clone(), registry.to_owned());
        let found = tokio::task::spawn_blocking(move || store.get(&domain)).await;
        match found {
            Ok(found) => found.map_err(failed),
            // The thread has ended without an answer: the runtime is being shut down.
            Err(_) => Err(RegistryError::Cancelled),
        }
    }

    /// Fetches a token, and tells how long it is good for.
    async fn token(
        &self,
        endpoint: &Endpoint,
        request: &TokenRequest<'_>,
        credential: Option<&Credential>,
    ) -> Result<(Secret, Duration), RegistryError> {
        let action = format!("{}, authorized by a token", request.attempt.action);
        let (method, url, headers, body) = request.http(credential);
        let attempt = Attempt::new(&action, &url);
        let response = self
            .exchange(&attempt, method, url.clone(), headers, Payload::Bytes(body))
            .await?;
        let status = response.status();
        if matches!(status.as_u16(), 401 | 403) && endpoint.credentials_of.is_some() {
            let body = self.error_body(response).await;
            return Err(self.refused(endpoint, credential.is_none(), attempt, body));
        }
        // A redirect is not followed: credentials are for the realm alone.
        if !status.is_success() {
            return Err(self.status_error(attempt, response).await);
        }
        let body = self.read(&attempt, response, MAX_TOKEN_BYTES).await?;
        let no_token = || RegistryError::Challenge {
            attempt: attempt.clone(),
            problem: ChallengeProblem::NoToken(shown(&url)),
        };
        // What serde says might quote a token.
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| no_token())?;
        let token = answer
            .token
            .filter(|token| !token.is_empty())
            .or(answer.access_token.filter(|token| !token.is_empty()))
            .ok_or_else(no_token)?;
        Ok((token, lifetime(answer.expires_in)))
    }
}

/// Shorter than the server says: a request takes a while to get there.
fn lifetime(expires_in: Option<u64>) -> Duration {
    let whole = expires_in.unwrap_or(DEFAULT_LIFETIME).min(MAX_LIFETIME);
    Duration::from_secs(whole.saturating_sub((whole / 10).clamp(1, 30)))
}

/// A request to a token server.
struct TokenRequest<'a> {
    realm: Url,
    service: Option<&'a str>,
    scopes: Vec<String>,
    attempt: &'a Attempt,
}

impl TokenRequest<'_> {
    fn http(&self, credential: Option<&Credential>) -> (Method, Url, HeaderMap, Bytes) {
        let mut url = self.realm.clone();
        let mut headers = HeaderMap::new();
        if let Some(Credential::IdentityToken(token)) = credential {
            // A form is written as a query is.
            let mut form = url.clone();
            form.set_query(None);
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", CLIENT_ID)
                .append_pair("refresh_token", token.expose())
                .append_pair("scope", &self.scopes.join(" "));
            if let Some(service) = self.service {
                form.query_pairs_mut().append_pair("service", service);
            }
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, kind);
            let body = form.query().unwrap_or_default().to_owned();
            return (Method::POST, url, headers, body.into());
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in &self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(Credential::Password { username, .. }) = credential {
                query.append_pair("account", username);
            }
        }
        if url.query() == Some("") {
            url.set_query(None);
        }
        if let Some(Credential::Password { username, password }) = credential
            && let Some(header) = basic_header(username, password)
        {
            headers.insert(reqwest::header::AUTHORIZATION, header);
        }
        (Method::GET, url, headers, Bytes::new())
    }
}

/// The token server's URL, if what is sent to it is as safe as with the registry.
fn realm(challenge: &Challenge, endpoint: &Endpoint) -> Result<Url, ChallengeProblem> {
    let text = challenge.parameter("realm").unwrap_or_default();
    let malformed = || ChallengeProblem::Realm(text.chars().take(200).collect());
    let url = Url::parse(text).map_err(|_| malformed())?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if endpoint.base.scheme() == "http" => Ok(url),
        "http" => Err(ChallengeProblem::InsecureRealm(shown(&url))),
        _ => Err(malformed()),
    }
}

/// What is needed, and what the challenge names beside that.
fn wanted_scopes(challenge: &Challenge, scopes: &[String]) -> Vec<String> {
    let mut wanted = scopes.to_vec();
    let named = challenge.parameter("scope").unwrap_or_default();
    for scope in named.split_whitespace().take(MAX_SCOPES) {
        if !wanted.iter().any(|known| covers(known, scope)) {
            wanted.push(scope.to_owned());
        }
    }
    wanted
}

/// Whether one scope has all that another has: `TYPE:NAME:ACTION,ACTION`.
fn covers(one: &str, other: &str) -> bool {
    match (one.rsplit_once(':'), other.rsplit_once(':')) {
        (Some((one, have)), Some((other, need))) => {
            one == other
                && need
                    .split(',')
                    .all(|action| have.split(',').any(|known| known == action))
        }
        _ => one == other,
    }
}

fn basic_header(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = format!("{username}:{}", password.expose());
    sensitive(&format!("Basic {}", STANDARD.encode(pair)))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
