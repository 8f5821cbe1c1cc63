//! `-e` and `--env-file`, as the `docker` command reads them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hostagent::workload::EnvChange;

/// The longest file accepted.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Why a variable could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("invalid environment variable {0:?}: it has no name")]
    NoName(String),
    #[error("cannot read the file of environment variables {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("line {line} of {} {problem}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        problem: &'static str,
    },
}

/// Where `NAME` without a value gets its value from.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One `-e`: `NAME=value`, or `NAME` for the caller's own value. If the caller
/// has none, the variable is removed.
pub fn from_flag(text: &str, lookup: Lookup) -> Result<EnvChange, EnvError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, lookup(text)),
    };
    if name.is_empty() {
        return Err(EnvError::NoName(text.to_owned()));
    }
    Ok(match value {
        Some(value) => EnvChange::Set(name.to_owned(), value),
        None => EnvChange::Unset(name.to_owned()),
    })
}

/// An `--env-file`: one variable a line. Blank lines and lines that begin with
/// `#` are passed over, blanks before a name are dropped, and the value is all
/// after the `=`, quotes and blanks included. `NAME` alone takes the caller's
/// value; if the caller has none, the line does nothing.
pub fn from_file(path: &Path, lookup: Lookup) -> Result<Vec<EnvChange>, EnvError> {
    let read = || {
        let mut bytes = Vec::new();
        // A pipe or a device has no length to ask for.
        let file = File::open(path)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(std::io::Error::other(format!(
                "it has more than {MAX_FILE_BYTES} bytes"
            )));
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|source| EnvError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes, lookup).map_err(|(line, problem)| EnvError::Line {
        path: path.to_owned(),
        line,
        problem,
    })
}

fn parse(bytes: &[u8], lookup: Lookup) -> Result<Vec<EnvChange>, (usize, &'static str)> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut changes = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        let line = std::str::from_utf8(line).map_err(|_| (number, "is not UTF-8"))?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line, None),
        };
        if name.is_empty() {
            return Err((number, "has no variable name"));
        }
        if name.contains(char::is_whitespace) {
            return Err((number, "has a variable name with a blank"));
        }
        if let Some(value) = value.or_else(|| lookup(name)) {
            changes.push(EnvChange::Set(name.to_owned(), value));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_owned())
    }

    fn set(name: &str, value: &str) -> EnvChange {
        EnvChange::Set(name.into(), value.into())
    }

    #[test]
    fn a_flag_sets_takes_over_or_removes() {
        let flag = |text| from_flag(text, &lookup).unwrap();
        assert_eq!(flag("A=b=c"), set("A", "b=c"));
        assert_eq!(flag("A="), set("A", ""));
        assert_eq!(flag("HOME"), set("HOME", "/root"));
        assert_eq!(flag("NONE"), EnvChange::Unset("NONE".into()));
        assert!(from_flag("=x", &lookup).is_err());
        assert!(from_flag("", &lookup).is_err());
    }

    #[test]
    fn a_file_is_read_as_docker_reads_it() {
        let text = "\u{feff}# comment\n\n  A=1\nB= \"two\" \r\nHOME\nNONE\nC=a=b";
        assert_eq!(
            parse(text.as_bytes(), &lookup).unwrap(),
            [
                set("A", "1"),
                set("B", " \"two\" "),
                set("HOME", "/root"),
                set("C", "a=b"),
            ]
        );
    }

    #[test]
    fn a_file_without_an_end_is_refused() {
        let error = from_file(Path::new("/dev/zero"), &lookup).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("more than"), "{source}");
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        assert_eq!(parse(b"A=1\n=x", &lookup), Err((2, "has no variable name")));
        assert!(matches!(parse(b"A B=1", &lookup), Err((1, _))));
        assert!(matches!(parse(b"A=\xff", &lookup), Err((1, _))));
    }
}
