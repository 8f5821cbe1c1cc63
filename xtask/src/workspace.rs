//! Where things are in the workspace.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Cargo's target directory: this program lies in it.
pub fn target_directory() -> PathBuf {
    let own = env::current_exe().unwrap_or_default();
    own.ancestors()
        // Cargo tags it for backup programs.
        .find(|directory| directory.join("CACHEDIR.TAG").is_file())
        .map_or_else(|| root().join("target"), Path::to_owned)
}

/// What a user of mote installs: `bin/` and `share/mote/`.
pub fn distribution() -> PathBuf {
    target_directory().join("distribution")
}
