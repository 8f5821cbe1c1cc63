//! Answers, and the errors that some of them are.

use jiff::Timestamp;
use reqwest::{Response, StatusCode, Url};
use tokio::time::timeout;

use super::endpoint::{Endpoint, same_origin};
use super::error::{Attempt, Detail, RegistryError};
use super::retry::retry_after;
use super::session::Session;
use super::text;

/// The most of an error's body that is looked at.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// An answer, of whatever status, and where it is from in the end.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response,
    pub url: Url,
    pub attempt: Attempt,
    /// Whether the request had credentials of the registry, or a token got by them.
    pub with_credentials: bool,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

impl Session {
    /// Takes an answer of one of these statuses; any other becomes its error.
    pub(super) async fn expect(
        &self,
        endpoint: &Endpoint,
        answer: Answer,
        statuses: &[u16],
    ) -> Result<Answer, RegistryError> {
        if statuses.contains(&answer.status().as_u16()) {
            return Ok(answer);
        }
        let is_refusal = matches!(answer.status().as_u16(), 401 | 403);
        let has_credentials = endpoint.credentials_of.is_some();
        if is_refusal && has_credentials && same_origin(&answer.url, &endpoint.base) {
            let body = self.error_body(answer.response).await;
            let anonymous = !answer.with_credentials;
            return Err(self.refused(endpoint, anonymous, answer.attempt, body));
        }
        Err(self.status_error(answer.attempt, answer.response).await)
    }

    /// The error that an answer's status means.
    pub(super) async fn status_error(&self, attempt: Attempt, response: Response) -> RegistryError {
        let status = response.status();
        let retry_after = retry_after(response.headers(), Timestamp::now());
        let detail = Detail(text::said(&self.error_body(response).await));
        if status == StatusCode::NOT_FOUND {
            return RegistryError::NotFound { attempt, detail };
        }
        RegistryError::Status {
            attempt,
            status,
            detail,
            retry_after,
        }
    }

    /// What to say of a server that does not let us in.
    pub(super) fn refused(
        &self,
        endpoint: &Endpoint,
        anonymous: bool,
        attempt: Attempt,
        body: Vec<u8>,
    ) -> RegistryError {
        let detail = Detail(text::said(&body));
        let Some(registry) = &endpoint.credentials_of else {
            // Nothing helps a mirror that wants credentials: it gets none.
            return RegistryError::Status {
                attempt,
                status: StatusCode::UNAUTHORIZED,
                detail,
                retry_after: None,
            };
        };
        let registry = registry.clone();
        if anonymous {
            RegistryError::NoCredentials {
                attempt,
                registry,
                detail,
            }
        } else {
            RegistryError::Denied {
                attempt,
                registry,
                detail,
            }
        }
    }

    /// The body of an error, or what could be had of it: the status matters more.
    pub(super) async fn error_body(&self, mut response: Response) -> Vec<u8> {
        let mut body = Vec::new();
        let read = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                let room = MAX_ERROR_BYTES as usize - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if body.len() as u64 >= MAX_ERROR_BYTES {
                    break;
                }
            }
        };
        // Whatever came in time is in `body`.
        let _ = timeout(self.settings.download.stall, read).await;
        body
    }
}
