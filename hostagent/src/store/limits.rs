//! What an image may cost this host: the administrator's `limits.toml`.
//!
//! The file is in the directory `$MOTE_CONFIG`, or in `/etc/mote`. Without it, the
//! defaults below hold, which are far beyond any image seen in a registry. Fields that are
//! not listed here are refused.
//!
//! ```toml
//! max_layer_bytes = 137438953472     # of a layer's tar stream, after decompression; also
//!                                    # of an archive that is a pipe, or compressed
//! max_blob_bytes = 137438953472      # of what it is converted to
//! max_entries = 4000000              # files and directories of a layer or an image
//! max_metadata_bytes = 1073741824    # of their names, links and attributes, in memory
//! ```

use std::path::Path;

use erofs::Limits;
use serde::Deserialize;

use crate::config_file::{self, FileError};

/// The name of the file.
pub const FILE_NAME: &str = "limits.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    max_layer_bytes: Option<u64>,
    max_blob_bytes: Option<u64>,
    max_entries: Option<u64>,
    max_metadata_bytes: Option<u64>,
}

/// The limits of this machine.
pub fn of_this_machine() -> Result<Limits, FileError> {
    load(&config_file::directory())
}

/// Reads `limits.toml` in `directory`; the defaults if there is none.
pub fn load(directory: &Path) -> Result<Limits, FileError> {
    let path = directory.join(FILE_NAME);
    let Some(text) = config_file::read(&path)? else {
        return Ok(Limits::default());
    };
    let file: File = config_file::parse(&path, &text)?;
    let default = Limits::default();
    Ok(Limits {
        max_tar_bytes: file.max_layer_bytes.unwrap_or(default.max_tar_bytes),
        max_blob_bytes: file.max_blob_bytes.unwrap_or(default.max_blob_bytes),
        max_entries: file.max_entries.unwrap_or(default.max_entries),
        max_metadata_bytes: file
            .max_metadata_bytes
            .unwrap_or(default.max_metadata_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_does_not_name_is_as_without_it() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()).unwrap(), Limits::default());
        let path = directory.path().join(FILE_NAME);
        std::fs::write(&path, "max_entries = 5\n").unwrap();
        let limits = load(directory.path()).unwrap();
        assert_eq!(limits.max_entries, 5);
        assert_eq!(limits.max_tar_bytes, Limits::default().max_tar_bytes);
        for wrong in ["max_entries = -1", "max_entry = 1", "max_entries ="] {
            std::fs::write(&path, wrong).unwrap();
            let error = load(directory.path()).unwrap_err();
            assert!(error.to_string().contains(FILE_NAME), "{error}");
        }
    }
}
