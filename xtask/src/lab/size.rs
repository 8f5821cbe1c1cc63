//! Amounts of memory and disk, as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, written `512M` or `8G` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    bytes: u64,
}

impl Size {
    /// This many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size such as 512M or 8G");
        let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number
            .checked_mul(unit)
            .filter(|bytes| *bytes > 0)
            .map(Self::from_bytes)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, letter) in [(1 << 30, 'G'), (1 << 20, 'M'), (1 << 10, 'K')] {
            if self.bytes >= unit && self.bytes.is_multiple_of(unit) {
                return write!(f, "{}{letter}", self.bytes / unit);
            }
        }
        write!(f, "{} bytes", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_they_are_shown() {
        for text in ["1K", "512M", "8G", "3000M"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("2GiB".parse(), Ok(Size::from_bytes(2 << 30)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "12",
            "-1G",
            "0M",
            "1X",
            "99999999999T",
            "1.5G",
            "é",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
