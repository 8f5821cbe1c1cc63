//! What a microVM is called.

use std::fs::File;
use std::io::Read;

use anyhow::bail;

/// Digits of an id that people see, as in Docker.
pub const SHORT_ID: usize = 12;
/// `sethostname(2)`, `HOST_NAME_MAX`.
const MAX_HOSTNAME_BYTES: usize = 64;
/// A name becomes a file name.
const MAX_NAME_BYTES: usize = 200;

/// 64 random hexadecimal digits.
pub fn new_id() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The host name: the user's, or the start of the id.
pub fn hostname(wanted: Option<&str>, id: &str) -> anyhow::Result<String> {
    let Some(name) = wanted else {
        return Ok(id.chars().take(SHORT_ID).collect());
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > MAX_HOSTNAME_BYTES || !name.chars().all(good) {
        bail!(
            "the host name {name:?} is invalid: it has 1 to {MAX_HOSTNAME_BYTES} letters, digits, '-', '_' and '.'"
        );
    }
    Ok(name.to_owned())
}

/// Checks a name with Docker's rule.
pub fn run_name(name: &str) -> anyhow::Result<&str> {
    let first = |b: u8| b.is_ascii_alphanumeric();
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = (2..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(rest);
    if !good {
        bail!(
            "the name {name:?} is invalid: it begins with a letter or digit, followed by one or more letters, digits, '_', '.' and '-'"
        );
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_name_is_the_start_of_the_id_unless_the_user_names_one() {
        let id = new_id().unwrap();
        assert_eq!(id.len(), 64);
        assert_eq!(hostname(None, &id).unwrap(), id[..12]);
        assert_eq!(hostname(Some("web-1.local"), &id).unwrap(), "web-1.local");
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(hostname(Some(bad), &id).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["web", "a1", "A.b_c-d"] {
            assert!(run_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "a/b", "..", "a b", "a\0"] {
            assert!(run_name(bad).is_err(), "{bad:?}");
        }
    }
}
