//! Files in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

/// An empty file without a name.
pub fn empty() -> File {
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory");
    File::from(fd)
}

/// Makes `content` all there is in `file`.
pub fn fill(file: &File, content: &[u8]) {
    file.set_len(0).expect("a file in memory shrinks");
    file.write_all_at(content, 0)
        .expect("a file in memory grows");
}

/// A file with this content.
pub fn with(content: &[u8]) -> File {
    let file = empty();
    fill(&file, content);
    file
}
