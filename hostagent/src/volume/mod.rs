//! Directories of the host in a guest: `--volume`, and the virtiofsd behind each.

mod server;

use std::path::PathBuf;

use guest_protocol::Mount;

pub use server::{Client, Server, ServerError, find_server, serve};

/// What is wrong with a `--volume`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--volume {text}: {problem}")]
pub struct VolumeOptionError {
    text: String,
    problem: &'static str,
}

/// `HOSTDIR:/GUESTPATH[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOption {
    /// A directory of the host's, from its root.
    pub source: PathBuf,
    /// Where it is in the guest, from its root.
    pub target: String,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

impl VolumeOption {
    /// Reads the flag.
    pub fn parse(text: &str) -> Result<Self, VolumeOptionError> {
        parse(text).map_err(|problem| VolumeOptionError {
            text: text.to_owned(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<VolumeOption, &'static str> {
    let mut parts = text.split(':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next());
    let mode = parts.next();
    if parts.next().is_some() {
        return Err("it has more than three parts; a path with ':' cannot be given");
    }
    let target = target.ok_or("it is not HOSTDIR:/GUESTPATH[:ro]")?;
    if !source.starts_with('/') {
        return Err("HOSTDIR must be an absolute path; named volumes are not known");
    }
    if !target.starts_with('/') {
        return Err("GUESTPATH must be an absolute path");
    }
    if target.split('/').all(|part| part.is_empty() || part == ".") {
        return Err("GUESTPATH must not be the root directory");
    }
    if target.split('/').any(|part| part == "..") {
        return Err("GUESTPATH must not have '..'");
    }
    if text.contains('\0') {
        return Err("it has a zero byte");
    }
    // The old virtiofsd takes what follows for another option.
    if source.contains(',') {
        return Err("HOSTDIR with ',' cannot be given");
    }
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err("the last part must be ro or rw"),
    };
    Ok(VolumeOption {
        source: source.into(),
        target: target.to_owned(),
        read_only,
    })
}

/// What the guest's init mounts, and by which tags: as many as `volumes`, in order.
pub fn mounts(volumes: &[VolumeOption]) -> Vec<Mount> {
    volumes
        .iter()
        .zip(0..)
        .map(|(volume, index)| Mount {
            tag: tag(index),
            target: volume.target.clone(),
            read_only: volume.read_only,
        })
        .collect()
}

/// The tag of the volume at this index.
pub fn tag(index: usize) -> String {
    format!("volume{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_directory_a_path_and_perhaps_a_mode() {
        for (text, read_only) in [
            ("/srv/data:/data", false),
            ("/srv/data:/data:rw", false),
            ("/srv/data:/data:ro", true),
        ] {
            let volume = VolumeOption::parse(text).unwrap();
            assert_eq!(volume.source, PathBuf::from("/srv/data"));
            assert_eq!(volume.target, "/data");
            assert_eq!(volume.read_only, read_only);
        }
    }

    #[test]
    fn what_is_no_volume_is_refused_with_its_text() {
        for (text, problem) in [
            ("", "HOSTDIR:/GUESTPATH"),
            ("/srv", "HOSTDIR:/GUESTPATH"),
            ("data:/data", "named volumes"),
            ("./data:/data", "absolute"),
            (":/data", "absolute"),
            ("/srv:data", "GUESTPATH"),
            ("/srv:", "GUESTPATH"),
            ("/srv:/", "root"),
            ("/srv:/./", "root"),
            ("/srv:/a/../b", "'..'"),
            ("/srv:/data:z", "ro or rw"),
            ("/srv:/data:", "ro or rw"),
            ("/srv:/data:ro:rw", "three parts"),
            ("/srv,writeback:/data", "','"),
            ("/srv:/da\0ta", "zero byte"),
        ] {
            let error = VolumeOption::parse(text).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(text), "{error}");
        }
    }
}
