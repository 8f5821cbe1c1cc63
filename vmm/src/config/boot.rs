//! What runs first.

use outboard::{BlobHash, Tree};

use super::descriptor::{check_size, readable, stored_size};
use super::error::{ConfigError, kind};
use crate::arch::layout;
use crate::boot::blob::BootBlob;
use crate::descriptors::Descriptors;
use crate::spec::{BootBlobSpec, BootSpec};

/// The kernel and what it is given.
#[derive(Debug)]
pub struct BootConfig {
    /// An ELF file or a bzImage.
    pub kernel: BootBlob,
    /// A newc archive.
    pub initrd: Option<BootBlob>,
    /// No longer than the guest takes, without zero bytes.
    pub command_line: String,
}

/// Validates what runs first.
pub fn boot(spec: BootSpec, fds: &mut Descriptors) -> Result<BootConfig, ConfigError> {
    let field = "boot.command_line";
    if spec.command_line.len() >= layout::COMMAND_LINE_MAX_BYTES {
        return Err(ConfigError::Text {
            field: field.to_owned(),
            problem: "is longer than the 2047 bytes that Linux takes on x86",
        });
    }
    if spec.command_line.contains('\0') {
        return Err(ConfigError::Text {
            field: field.to_owned(),
            problem: "holds a zero byte",
        });
    }
    Ok(BootConfig {
        kernel: blob(spec.kernel, "boot.kernel", fds)?,
        initrd: spec
            .initrd
            .map(|initrd| blob(initrd, "boot.initrd", fds))
            .transpose()?,
        command_line: spec.command_line,
    })
}

fn blob(spec: BootBlobSpec, field: &str, fds: &mut Descriptors) -> Result<BootBlob, ConfigError> {
    let file_field = format!("{field}.file");
    let data = readable(spec.file, &file_field, fds)?;
    let bytes = stored_size(&data).ok_or_else(|| kind(&file_field, "a regular file"))?;
    // Nothing of it would be read, and so nothing verified.
    if bytes == 0 && spec.hash != BlobHash::of(b"") {
        return Err(kind(file_field, "a file that holds something"));
    }
    let field = format!("{field}.outboard");
    let outboard = readable(spec.outboard, &field, fds)?;
    let tree = Tree::new(spec.hash, bytes);
    let wanted = tree.geometry().outboard_bytes();
    check_size(&outboard, wanted, tree.geometry().blob_bytes(), &field)?;
    Ok(BootBlob::new(tree, data, outboard))
}
