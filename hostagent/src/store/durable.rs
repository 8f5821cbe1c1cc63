//! Files and directories that are either there and whole or not there, whatever
//! happens meanwhile: written aside, brought to disk, renamed, and the rename
//! brought to disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Makes a directory that only its owner can enter, and its parents.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => Ok(()),
    }
}

/// Brings the names in a directory to disk.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a new file and brings it to disk. It is not yet in place.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_new(File::options().write(true).create_new(true), path, bytes)
}

/// The same for a file that only its owner may read.
pub(super) fn write_secret_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    write_new(
        options.write(true).create_new(true).mode(0o600),
        path,
        bytes,
    )
}

fn write_new(options: &OpenOptions, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Renames what was written aside to its place, over what is there if that is
/// a file.
pub(super) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        sync_directory(from)?;
    }
    std::fs::rename(from, to)?;
    match to.parent() {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}
