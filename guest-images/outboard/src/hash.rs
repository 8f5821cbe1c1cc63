//! What a blob is named by.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The BLAKE3 hash of a blob. As text it is `blake3:` and 64 lower-case hexadecimal
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobHash([u8; 32]);

const PREFIX: &str = "blake3:";

/// Why a text is not the hash of a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not \"blake3:\" and 64 lower-case hexadecimal digits")]
pub struct HashError(String);

impl BlobHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        blake3::hash(bytes).into()
    }

    /// The hash of all that `content` has, and how long that is in bytes.
    pub fn of_reader(content: impl io::Read) -> io::Result<(Self, u64)> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(content)?;
        Ok((hasher.finalize().into(), hasher.count()))
    }

    /// Its 64 digits alone, as file names have them.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// From 64 lower-case hexadecimal digits alone.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let lower = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        if !digits.bytes().all(lower) {
            return None;
        }
        blake3::Hash::from_hex(digits).ok().map(Self::from)
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for BlobHash {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl From<[u8; 32]> for BlobHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlobHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        text.strip_prefix(PREFIX)
            .and_then(Self::from_hex)
            .ok_or_else(|| HashError(text.chars().take(100).collect()))
    }
}

impl Serialize for BlobHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_nothing_is_the_well_known_one() {
        assert_eq!(
            BlobHash::of(b"").to_string(),
            "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn a_hash_survives_being_written_and_read() {
        let hash = BlobHash::of(b"blob");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(BlobHash::from_hex(&hash.hex()), Some(hash));
    }

    #[test]
    fn other_texts_are_refused() {
        let hash = BlobHash::of(b"").to_string();
        for bad in [
            "",
            "blake3:",
            "sha256:00",
            &hash.to_uppercase(),
            &hash[..70],
        ] {
            assert!(bad.parse::<BlobHash>().is_err(), "{bad}");
        }
        assert_eq!(BlobHash::from_hex(&hash[7..].to_uppercase()), None);
    }
}
