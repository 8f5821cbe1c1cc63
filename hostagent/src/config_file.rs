//! The administrator's files: `registries.toml`, `policy.toml`, `limits.toml`, `peers.toml`.
//!
//! All are read in one way: a file that is not there has defaults, which its reader knows;
//! one that cannot be read, a symbolic link to nothing too, is an error. Fields that are
//! not known are refused by the types they are read into.

use std::env;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Where they are unless `$MOTE_CONFIG` says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/etc/mote";
/// Many times the longest file anyone has written by hand.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why such a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is far too long to be one.
    #[error("{} is longer than {MAX_FILE_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not TOML, or a field is unknown, missing or of the wrong kind.
    #[error("{}:{line}: {}", path.display(), source.message())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        source: Box<toml::de::Error>,
    },
}

/// `$MOTE_CONFIG`, or `/etc/mote` if that is unset or empty.
pub fn directory() -> PathBuf {
    let named = env::var_os("MOTE_CONFIG").filter(|value| !value.is_empty());
    named.map_or_else(|| DEFAULT_DIRECTORY.into(), PathBuf::from)
}

/// The text of a file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match crate::open::at_once(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(Some(text))
}

/// What the text of the file `path` says.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|source| FileError::Syntax {
        path: path.to_owned(),
        line: line(text, source.span().map_or(0, |span| span.start)),
        source: Box::new(source),
    })
}

/// The line, counted from 1, of a byte of `text`, for errors.
pub(crate) fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_not_there_is_as_if_there_were_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits.toml");
        assert!(matches!(read(&path), Ok(None)));
        std::os::unix::fs::symlink("nothing", &path).unwrap();
        assert!(matches!(read(&path), Err(FileError::Read { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a = 1\n").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("a = 1\n"));
        // A part of it would say something else.
        let long = format!("#{}\na = 2\n", " ".repeat(MAX_FILE_BYTES as usize));
        std::fs::write(&path, long).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooLong { .. })));
    }
}
