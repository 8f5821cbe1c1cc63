//! How long to wait before another try.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::error::{RegistryError, Retry};

/// The longest wait between two tries, whatever a server asks for.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that is not the server's wish.
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// Waits that double, each shortened at random by up to a half, so that clients
/// that failed together do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The first wait is `first` or less.
    pub fn new(first: Duration) -> Self {
        Self { next: first }
    }

    /// The wait before another try after `error`; `None` if that is no use.
    pub fn after(&mut self, error: &RegistryError) -> Option<Duration> {
        let whole = self.next.min(MAX_BACKOFF);
        let wait = whole.mul_f64(0.5 + 0.5 * random_fraction());
        match error.retry() {
            Retry::Never => None,
            Retry::Backoff => {
                self.next = whole * 2;
                Some(wait)
            }
            Retry::After(asked) => {
                self.next = whole * 2;
                Some(asked.max(wait).min(MAX_WAIT))
            }
        }
    }
}

/// From 0 to 1. The standard library seeds its hash maps at random.
fn random_fraction() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    random as f64 / u64::MAX as f64
}

/// When a server wants to be asked again: `Retry-After` (RFC 9110, section
/// 10.2.3), seconds or a date, at most [`MAX_WAIT`].
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(MAX_WAIT));
    }
    let date = DateTimeParser::new().parse_timestamp(text).ok()?;
    let wait = Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO);
    Some(wait.min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;
    use crate::registry::error::Attempt;

    fn parse(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
        let now = "2026-11-06T08:49:30Z".parse().unwrap();
        retry_after(&headers, now)
    }

    #[test]
    fn seconds_and_dates_are_read_and_bounded() {
        for (text, seconds) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("3600", Some(60)),
            ("99999999999999999999999", Some(60)),
            ("Fri, 06 Nov 2026 08:49:37 GMT", Some(7)),
            ("Fri, 06 Nov 2026 09:49:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(parse(text), seconds.map(Duration::from_secs), "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn waits_grow_and_stay_bounded() {
        let error = RegistryError::Stalled {
            attempt: Attempt {
                action: String::new(),
                host: String::new(),
            },
            after: Duration::ZERO,
        };
        let mut backoff = Backoff::new(Duration::from_secs(1));
        for most in [1, 2, 4, 8, 15, 15, 15] {
            let most = Duration::from_secs(most);
            let wait = backoff.after(&error).unwrap();
            assert!(wait <= most && wait >= most / 2, "{wait:?}");
        }
        assert_eq!(backoff.after(&RegistryError::Cancelled), None);
    }

    proptest! {
        #[test]
        fn any_header_leads_to_a_bounded_wait(text in "[ -~]{0,40}|[0-9]{1,30}") {
            prop_assert!(parse(&text).is_none_or(|wait| wait <= MAX_WAIT));
        }
    }
}
