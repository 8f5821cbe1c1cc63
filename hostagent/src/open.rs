//! Opening files that a user has named, whatever they are.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Opens a file to be read, without waiting: a FIFO is opened although nobody
/// writes to it. It stays non-blocking, which regular files do not notice.
pub fn at_once(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}
