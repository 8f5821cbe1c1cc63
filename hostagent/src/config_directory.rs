//! Where the administrator's files are: `registries.toml`, `policy.toml` and `limits.toml`.

use std::env;
use std::path::PathBuf;

/// Where they are unless `$MOTE_CONFIG` says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/etc/mote";

/// `$MOTE_CONFIG`, or `/etc/mote` if that is unset or empty.
pub fn of_this_machine() -> PathBuf {
    let named = env::var_os("MOTE_CONFIG").filter(|value| !value.is_empty());
    named.map_or_else(|| DEFAULT_DIRECTORY.into(), PathBuf::from)
}

/// The line, counted from 1, of a byte of `text`, for errors.
pub(crate) fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}
