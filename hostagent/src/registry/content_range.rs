//! `Content-Range`: which part of a blob an answer has.
//!
//! Source: RFC 9110, section 14.4.

use std::ops::Range;

use reqwest::header::{CONTENT_RANGE, HeaderMap};

/// A part, and the length of the whole if it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The bytes, from 0.
    pub bytes: Range<u64>,
    /// The length of the whole.
    pub whole: Option<u64>,
}

impl ContentRange {
    /// Reads `bytes FIRST-LAST/WHOLE` or `bytes FIRST-LAST/*`.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(CONTENT_RANGE)?.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, whole) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let whole = match whole {
            "*" => None,
            whole => Some(number(whole)?),
        };
        let end = last.checked_add(1)?;
        (first <= last && whole.is_none_or(|whole| end <= whole)).then_some(Self {
            bytes: first..end,
            whole,
        })
    }

    /// Whether it is exactly `bytes` of a whole of `size`, if that is known.
    pub fn is(&self, bytes: &Range<u64>, size: Option<u64>) -> bool {
        let whole_fits = match (self.whole, size) {
            (Some(whole), Some(size)) => whole == size,
            _ => true,
        };
        self.bytes == *bytes && whole_fits
    }
}

/// Digits alone: `str::parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn well_formed_ranges_are_read() {
        let range = |bytes, whole| Some(ContentRange { bytes, whole });
        assert_eq!(
            ContentRange::parse("bytes 0-9/100"),
            range(0..10, Some(100))
        );
        assert_eq!(ContentRange::parse("Bytes 5-5/*"), range(5..6, None));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        let last = u64::MAX;
        let overflow = format!("bytes 0-{last}/*");
        for text in [
            "",
            "bytes",
            "bytes */100",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes 0-9",
            "items 0-9/100",
            "bytes +0-9/100",
            "bytes 0-9/-1",
            "bytes 0-9/1e3",
            &overflow,
        ] {
            assert_eq!(ContentRange::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn ranges_are_read_back(first in 0u64..1 << 40, length in 1u64..1 << 40, more in 0u64..1 << 40) {
            let (end, whole) = (first + length, first + length + more);
            let found = ContentRange::parse(&format!("bytes {first}-{}/{whole}", end - 1)).unwrap();
            prop_assert!(found.is(&(first..end), Some(whole)) && found.is(&(first..end), None));
            prop_assert!(!found.is(&(first..end + 1), Some(whole)));
            prop_assert!(!found.is(&(first..end), Some(whole + 1)));
        }

        #[test]
        fn any_text_is_a_range_or_none(text in "(bytes )?[0-9*/ -]{0,40}") {
            if let Some(found) = ContentRange::parse(&text) {
                prop_assert!(found.bytes.start < found.bytes.end);
            }
        }
    }
}
