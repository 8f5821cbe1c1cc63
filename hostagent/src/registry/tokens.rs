//! The authorizations in use.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;

use super::endpoint::Endpoint;

/// More tokens than one command needs; then all are forgotten.
const MAX_TOKENS: usize = 1000;

/// An `Authorization` header.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    /// Marked sensitive, which hides it from `Debug`.
    pub header: HeaderValue,
    /// No credentials went into it.
    pub anonymous: bool,
}

/// The headers in use, by server and scopes.
#[derive(Default)]
pub(super) struct Tokens {
    known: Mutex<BTreeMap<(String, String), Known>>,
}

struct Known {
    authorization: Authorization,
    until: Option<Instant>,
}

impl Tokens {
    /// What was good for these scopes a moment ago.
    pub fn get(&self, endpoint: &Endpoint, scopes: &[String]) -> Option<Authorization> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&key(endpoint, scopes))?;
        let is_good = found.until.is_none_or(|until| Instant::now() < until);
        is_good.then(|| found.authorization.clone())
    }

    /// Forgets what a server no longer accepts.
    pub fn forget(&self, endpoint: &Endpoint, scopes: &[String]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&key(endpoint, scopes));
    }

    /// Remembers what was good, for as long as it is.
    pub fn put(
        &self,
        endpoint: &Endpoint,
        scopes: &[String],
        authorization: Authorization,
        lifetime: Option<Duration>,
    ) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_TOKENS {
            known.clear();
        }
        let until = lifetime.map(|lifetime| Instant::now() + lifetime);
        let value = Known {
            authorization,
            until,
        };
        known.insert(key(endpoint, scopes), value);
    }
}

fn key(endpoint: &Endpoint, scopes: &[String]) -> (String, String) {
    (endpoint.base.to_string(), scopes.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensitive(text: &str) -> HeaderValue {
        let mut header = HeaderValue::from_str(text).unwrap();
        header.set_sensitive(true);
        header
    }

    #[test]
    fn a_header_is_known_for_its_server_and_scopes_until_it_is_forgotten() {
        let tokens = Tokens::default();
        let endpoint = Endpoint::registry("a.example", "https").unwrap();
        let other = Endpoint::registry("b.example", "https").unwrap();
        let scopes = ["s".to_owned()];
        let authorization = Authorization {
            header: sensitive("Bearer t"),
            anonymous: true,
        };
        assert!(!format!("{authorization:?}").contains("Bearer"));
        tokens.put(
            &endpoint,
            &scopes,
            authorization.clone(),
            Some(Duration::from_secs(100)),
        );
        assert!(tokens.get(&endpoint, &scopes).is_some());
        assert!(tokens.get(&endpoint, &["t".to_owned()]).is_none());
        assert!(tokens.get(&other, &scopes).is_none());
        tokens.forget(&endpoint, &scopes);
        assert!(tokens.get(&endpoint, &scopes).is_none());
        tokens.put(&endpoint, &scopes, authorization, Some(Duration::ZERO));
        assert!(tokens.get(&endpoint, &scopes).is_none());
    }
}
