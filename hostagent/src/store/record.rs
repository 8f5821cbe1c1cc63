//! Records: what the store writes about itself, as JSON, each with its BLAKE3 hash.
//!
//! ```text
//! {"diff_id":"sha256:…","tar_bytes":…}
//! {"hash":"blake3:…"}
//! ```
//!
//! The first line is the record, the second has the hash of the first, its end of line
//! included. Blobs and documents are named by what they consist of; a record is not, and a
//! changed bit of it may well leave JSON that says something else.

use std::io;
use std::path::{Path, PathBuf};

use outboard::BlobHash;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};

use super::durable::{publish, write_file};
use super::{Store, StoreError};

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checksum {
    hash: BlobHash,
}

/// What is to be written of a record.
pub(crate) fn encode(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(record)?;
    bytes.push(b'\n');
    let hash = BlobHash::of(&bytes);
    serde_json::to_writer(&mut bytes, &Checksum { hash })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The record that was written so.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (record, checksum) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
    if checksum.is_empty() {
        return Err(serde_json::Error::custom("it has no checksum"));
    }
    let Checksum { hash } = serde_json::from_slice(checksum)?;
    let found = BlobHash::of(record);
    if found != hash {
        let problem = format!("its hash is {found}, and it says {hash}");
        return Err(serde_json::Error::custom(problem));
    }
    serde_json::from_slice(record)
}

impl Store {
    /// Puts a record in its place, over what is there.
    pub(super) fn write_record(
        &self,
        path: &Path,
        record: &impl Serialize,
        action: impl Fn() -> String,
    ) -> Result<(), StoreError> {
        let staging = self.scratch()?;
        let part = staging.path().join("record");
        encode(record)
            .and_then(|bytes| write_file(&part, &bytes))
            .and_then(|()| publish(&part, path))
            .map_err(|error| self.io(action(), error))
    }
}

/// A record; `None` if there is none.
pub(super) fn read_record<T: DeserializeOwned>(
    store: &Store,
    path: PathBuf,
    what: impl Fn() -> String,
) -> Result<Option<T>, StoreError> {
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(store.io(format!("reading {}", what()), error)),
    };
    decode(&bytes)
        .map(Some)
        .map_err(|source| StoreError::Record { path, source })
}

/// A record; `None` if there is none, or nothing that could be used as one: what it stood
/// for is made again. One that cannot be read is an error all the same: it may name what is
/// needed.
pub(super) fn usable_record<T: DeserializeOwned>(
    store: &Store,
    path: PathBuf,
) -> Result<Option<T>, StoreError> {
    match read_record(store, path.clone(), || {
        format!("the record {}", path.display())
    }) {
        Err(StoreError::Record { .. }) => Ok(None),
        read => read,
    }
}

/// A record that can be read and cannot be right.
pub(super) fn mistaken(path: PathBuf, problem: &str) -> StoreError {
    StoreError::Record {
        path,
        source: serde_json::Error::custom(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_any_bit_changed_or_any_end_lost_is_refused() {
        let record = vec!["debian:12".to_owned(), "debian:13".to_owned()];
        let bytes = encode(&record).unwrap();
        assert_eq!(decode::<Vec<String>>(&bytes).unwrap(), record);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            decode::<Vec<String>>(&changed).unwrap_err();
        }
        for length in 0..bytes.len() - 1 {
            decode::<Vec<String>>(&bytes[..length]).unwrap_err();
        }
    }
}
