//! What runs first.

use std::fs::File;

use super::descriptor::{readable, stored_size};
use super::error::{ConfigError, kind};
use crate::arch::layout;
use crate::descriptors::Descriptors;
use crate::spec::BootSpec;

/// The kernel and what it is given.
#[derive(Debug)]
pub struct BootConfig {
    /// An ELF file or a bzImage.
    pub kernel: File,
    /// A newc archive.
    pub initrd: Option<File>,
    /// No longer than the guest takes, without zero bytes.
    pub command_line: String,
}

/// Validates what runs first.
pub fn boot(spec: BootSpec, fds: &mut Descriptors) -> Result<BootConfig, ConfigError> {
    let regular = |number, field: &str, fds: &mut Descriptors| {
        let file = readable(number, field, fds)?;
        stored_size(&file).ok_or_else(|| kind(field, "a regular file"))?;
        Ok::<_, ConfigError>(file)
    };
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
        kernel: regular(spec.kernel, "boot.kernel", fds)?,
        initrd: spec
            .initrd
            .map(|number| regular(number, "boot.initrd", fds))
            .transpose()?,
        command_line: spec.command_line,
    })
}
