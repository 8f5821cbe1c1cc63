//! What registries answer, for `fuzz/`.

use reqwest::Url;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, LINK, WWW_AUTHENTICATE};

use super::{challenge, content_range, manifests, referrers};

fn headers(name: HeaderName, lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(100) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name.clone(), value);
        }
    }
    headers
}

/// Each line is a `WWW-Authenticate`.
pub fn challenges(lines: &[u8]) {
    for found in challenge::challenges(&headers(WWW_AUTHENTICATE, lines)) {
        assert!(!found.scheme.is_empty());
        for (name, value) in &found.parameters {
            assert!(!name.is_empty());
            // The first of a name is what counts.
            let first = found.parameter(name);
            assert!(first.is_some_and(|first| first == value || found.parameters.len() > 1));
        }
    }
}

/// The first line is a `Content-Range`.
pub fn content_range(lines: &[u8]) {
    if let Some(range) = content_range::ContentRange::of(&headers(CONTENT_RANGE, lines)) {
        assert!(!range.bytes.is_empty());
        assert!(range.whole.is_none_or(|whole| range.bytes.end <= whole));
        assert!(range.is(&range.bytes, range.whole) && range.is(&range.bytes, None));
    }
}

/// Each line is a `Link`.
pub fn next_page(lines: &[u8]) {
    let Ok(url) = Url::parse("https://registry.example/v2/team/app/referrers/sha256:00?n=1") else {
        return;
    };
    let _ = referrers::next_page(&url, &headers(LINK, lines));
}

/// The first line is a `Content-Type`, the rest the document that has it.
pub fn media_type(lines: &[u8]) {
    let end = lines.iter().position(|byte| *byte == b'\n');
    let (line, document) = lines.split_at(end.unwrap_or(lines.len()));
    let Ok(text) = HeaderValue::from_bytes(line) else {
        return;
    };
    let essence = manifests::essence_of(text.to_str().unwrap_or_default());
    assert!(!essence.contains(';') && essence.trim() == essence);
    let _ = manifests::media_type(essence, document);
}
