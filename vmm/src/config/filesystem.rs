//! File systems: tags that a guest can mount by, and connections to their backends.

use std::os::fd::OwnedFd;

use super::descriptor::connected_stream;
use super::error::{ConfigError, kind};
use crate::descriptors::Descriptors;
use crate::devices::virtio::fs::{TAG_BYTES, Tag};
use crate::spec::FilesystemSpec;

/// A file system.
#[derive(Debug)]
pub struct FilesystemConfig {
    /// Its name, no other's.
    pub tag: Tag,
    /// A Unix `SOCK_STREAM` socket that is connected.
    pub socket: OwnedFd,
}

/// Validates all file systems.
pub fn all(
    specs: Vec<FilesystemSpec>,
    fds: &mut Descriptors,
) -> Result<Vec<FilesystemConfig>, ConfigError> {
    let mut all: Vec<FilesystemConfig> = Vec::with_capacity(specs.len());
    for (spec, index) in specs.into_iter().zip(0..) {
        let field = format!("filesystems[{index}].tag");
        let Some(tag) = tag(&spec.tag) else {
            return Err(kind(field, "1 to 36 bytes without a zero byte"));
        };
        if let Some(other) = all.iter().position(|other| other.tag == tag) {
            return Err(ConfigError::Twice {
                field,
                other: format!("filesystems[{other}].tag"),
                value: spec.tag,
            });
        }
        let field = format!("filesystems[{index}].socket");
        let socket = connected_stream(spec.socket, &field, fds)?;
        all.push(FilesystemConfig { tag, socket });
    }
    Ok(all)
}

fn tag(text: &str) -> Option<Tag> {
    if text.is_empty() || text.len() > TAG_BYTES || text.contains('\0') {
        return None;
    }
    let mut tag = [0; TAG_BYTES];
    tag[..text.len()].copy_from_slice(text.as_bytes());
    Some(tag)
}
