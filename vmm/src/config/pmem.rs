//! Persistent memory: files that stay as long as they are.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags, fcntl_get_seals};

use crate::arch::layout::PMEM_ALIGNMENT;
use crate::descriptors::{Descriptors, access};
use crate::spec::PmemSpec;

use super::descriptor::readable;
use super::error::{ConfigError, in_range, kind};

/// More than any image has; so many fit above all memory a guest may have.
const MAX_PMEM_BYTES: u64 = 1 << 40;

/// A pmem device.
#[derive(Debug)]
pub struct PmemConfig {
    /// A regular file of `bytes`, open for what it is used for.
    pub file: Arc<File>,
    /// Not 0, and a multiple of [`PMEM_ALIGNMENT`] if it is written.
    pub bytes: u64,
    /// Whether the guest must not write it.
    pub read_only: bool,
}

/// Validates all pmem devices.
pub fn all(specs: Vec<PmemSpec>, fds: &mut Descriptors) -> Result<Vec<PmemConfig>, ConfigError> {
    let pmem = |(spec, index): (PmemSpec, usize)| one(spec, &format!("pmem[{index}]"), fds);
    specs.into_iter().zip(0..).map(pmem).collect()
}

fn one(spec: PmemSpec, field: &str, fds: &mut Descriptors) -> Result<PmemConfig, ConfigError> {
    let name = format!("{field}.file");
    let file = readable(spec.file, &name, fds)?;
    if !spec.read_only && !access(&file).1 {
        return Err(kind(name, "open for writing, or read_only"));
    }
    let size = rustix::fs::fstat(&file)
        .ok()
        .filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        .and_then(|stat| u64::try_from(stat.st_size).ok())
        .ok_or_else(|| kind(&name, "a regular file"))?;
    // Only files in memory have seals.
    if fcntl_get_seals(&file).is_ok_and(|seals| !seals.contains(SealFlags::SHRINK)) {
        return Err(kind(
            name,
            "sealed against shrinking (F_SEAL_SHRINK, fcntl(2)), as it is a file in memory",
        ));
    }
    let field = format!("{field}.length_bytes");
    let length = spec.length_bytes;
    let wanted = format!("1 to {MAX_PMEM_BYTES}");
    let bytes = in_range(&field, length, 1..=MAX_PMEM_BYTES, wanted)?;
    let wanted = format!("the size of its file, {size}");
    in_range(&field, length, size..=size, wanted)?;
    // What was written behind its end would be lost.
    if !spec.read_only && bytes % PMEM_ALIGNMENT != 0 {
        return Err(ConfigError::Range {
            field,
            found: bytes,
            wanted: format!("a multiple of {PMEM_ALIGNMENT}, or read_only"),
        });
    }
    Ok(PmemConfig {
        file: Arc::new(file),
        bytes,
        read_only: spec.read_only,
    })
}
