//! Which redirects are followed.

use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Method, StatusCode, Url};

use super::endpoint::shown;

/// The most redirects of one request.
pub(super) const MAX_REDIRECTS: usize = 10;

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectProblem {
    /// It leads where the request has been before.
    #[error("the redirects lead in a circle, back to {0}")]
    Loop(String),
    /// More than ten.
    #[error("there are more than {MAX_REDIRECTS} redirects, the last one to {0}")]
    TooMany(String),
    /// From HTTPS to HTTP.
    #[error("the server redirects from https to plain http at {0}, which is not followed")]
    Downgrade(String),
    /// No `Location`, or none that is an http or https URL.
    #[error("the server redirects to no usable URL (Location)")]
    Location,
    /// A request that has a body or changes something.
    #[error("the server redirects a {method} with {status}, which is not followed")]
    Method {
        /// The request's method.
        method: Method,
        /// The status of the answer.
        status: StatusCode,
    },
}

/// The way of one request.
#[derive(Debug)]
pub(super) struct Route {
    visited: Vec<Url>,
}

impl Route {
    pub fn new() -> Self {
        Self {
            visited: Vec::new(),
        }
    }

    /// Where an answer of `url` sends the request, if it does. 307 and 308 keep
    /// method and body; the others are only followed for what changes nothing
    /// (RFC 9110, section 15.4).
    pub fn next(
        &mut self,
        url: &Url,
        method: &Method,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Option<Url>, RedirectProblem> {
        let is_safe = matches!(*method, Method::GET | Method::HEAD);
        match status.as_u16() {
            301 | 302 | 303 | 307 | 308 if is_safe => {}
            307 | 308 if *method == Method::POST => {}
            301 | 302 | 303 | 307 | 308 => {
                return Err(RedirectProblem::Method {
                    method: method.clone(),
                    status,
                });
            }
            _ => return Ok(None),
        }
        let next = target(url, headers).ok_or(RedirectProblem::Location)?;
        check_scheme(url, &next)?;
        self.visited.push(url.clone());
        if self.visited.contains(&next) {
            return Err(RedirectProblem::Loop(shown(&next)));
        }
        if self.visited.len() > MAX_REDIRECTS {
            return Err(RedirectProblem::TooMany(shown(&next)));
        }
        Ok(Some(next))
    }
}

/// The URL in `Location`, which may be relative, without a user in it and without
/// a fragment: neither is for whoever serves the URL.
pub(super) fn target(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    let mut next = url.join(location).ok()?;
    next.set_fragment(None);
    let has_host = next.host_str().is_some_and(|host| !host.is_empty());
    let is_web = matches!(next.scheme(), "http" | "https") && has_host;
    (is_web && next.set_username("").is_ok() && next.set_password(None).is_ok()).then_some(next)
}

/// Refuses to go on in the clear what began with TLS.
pub(super) fn check_scheme(url: &Url, next: &Url) -> Result<(), RedirectProblem> {
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(RedirectProblem::Downgrade(shown(next)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn to(location: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_str(location).unwrap());
        headers
    }

    fn next(from: &str, location: &str) -> Result<Option<Url>, RedirectProblem> {
        let from = Url::parse(from).unwrap();
        Route::new().next(&from, &Method::GET, StatusCode::FOUND, &to(location))
    }

    #[test]
    fn targets_are_absolute_or_relative_and_lose_user_and_fragment() {
        for (location, expected) in [
            (
                "https://u:p@b.example/x?sig=1#f",
                "https://b.example/x?sig=1",
            ),
            ("/y", "https://a.example/y"),
            ("//c.example/z", "https://c.example/z"),
        ] {
            let found = next("https://a.example/v2/", location).unwrap().unwrap();
            assert_eq!(found.as_str(), expected);
        }
    }

    #[test]
    fn downgrades_and_other_schemes_are_refused() {
        let downgrade = next("https://a.example/", "http://a.example/");
        assert!(matches!(downgrade, Err(RedirectProblem::Downgrade(_))));
        assert!(next("http://a.example/", "https://a.example/").is_ok());
        for location in [
            "file:///etc/passwd",
            "ftp://a.example/",
            "https://",
            "data:,x",
        ] {
            let refused = next("https://a.example/", location);
            assert_eq!(refused, Err(RedirectProblem::Location), "{location}");
        }
    }

    #[test]
    fn circles_and_long_ways_end() {
        let mut route = Route::new();
        let mut follow = |from: &str, to_url: &str| {
            let from = Url::parse(from).unwrap();
            route.next(&from, &Method::GET, StatusCode::FOUND, &to(to_url))
        };
        assert!(follow("https://a.example/1", "/2").is_ok());
        let circle = follow("https://a.example/2", "/1");
        assert_eq!(circle, Err(RedirectProblem::Loop("a.example".to_owned())));

        let mut route = Route::new();
        let mut url = Url::parse("https://a.example/0").unwrap();
        let mut followed = 0;
        let end = loop {
            let location = to(&format!("/{}", followed + 1));
            match route.next(&url, &Method::GET, StatusCode::FOUND, &location) {
                Ok(Some(next)) => url = next,
                other => break other,
            }
            followed += 1;
        };
        assert_eq!(followed, MAX_REDIRECTS);
        assert!(matches!(end, Err(RedirectProblem::TooMany(_))));
    }

    #[test]
    fn what_changes_something_is_only_redirected_as_it_is() {
        let url = Url::parse("https://a.example/").unwrap();
        let follow = |method, status| Route::new().next(&url, &method, status, &to("/x"));
        assert!(follow(Method::POST, StatusCode::TEMPORARY_REDIRECT).is_ok());
        assert!(follow(Method::POST, StatusCode::FOUND).is_err());
        assert!(follow(Method::PUT, StatusCode::TEMPORARY_REDIRECT).is_err());
        assert_eq!(follow(Method::PUT, StatusCode::CREATED), Ok(None));
    }
}
