//! The files mote is installed with: the guest kernel, its initrd, what these two are, and
//! `mote-vmm`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::{BlobIdentity, BootFile, BootRecord};
use crate::vm_process::default_program;

/// The guest kernel, an ELF `vmlinux`.
const KERNEL: &str = "vmlinux";
/// The initramfs with the guest's init.
const INITRD: &str = "initrd";
/// The hashes and lengths of both, as JSON: [`BootRecord`]. Without it, or if they are not
/// in one directory, they are read at each start to learn their hashes.
const RECORD: &str = "boot.json";
/// Where packages put them.
const SYSTEM_DIRECTORY: &str = "/usr/share/mote";
/// Names a directory with both.
const DIRECTORY_VARIABLE: &str = "MOTE_ASSETS";
/// Names `mote-vmm`.
const VMM_VARIABLE: &str = "MOTE_VMM";

/// Why a file mote needs was not found.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// The guest kernel or the initrd.
    #[error(
        "{name} was not found in {}; set {DIRECTORY_VARIABLE} to the directory that has vmlinux and initrd, or build them with `cargo xtask kernel`",
        list(searched)
    )]
    NotFound {
        /// The file.
        name: &'static str,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The guest kernel or the initrd is there and cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `boot.json` is there and cannot be used.
    #[error("cannot read {}; remove it, or install mote again", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The guest kernel or the initrd has another length than `boot.json` says.
    #[error(
        "{} has {found} bytes, not {expected} as {RECORD} beside it says; install mote again, or remove {RECORD} to boot the file as it is",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// What `boot.json` says.
        expected: u64,
        /// How long it is.
        found: u64,
    },
    /// `mote-vmm`.
    #[error("mote-vmm was not found at {}; set {VMM_VARIABLE} to its path, or install it beside mote", .0.display())]
    Vmm(PathBuf),
}

/// Where the files are, found but not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    directories: Vec<PathBuf>,
    vmm: Option<PathBuf>,
}

impl Assets {
    /// Looks at the environment and at where this program is:
    /// `$MOTE_ASSETS` alone if it is set, else `../share/mote` beside the
    /// program's directory, then `/usr/share/mote`.
    pub fn locate() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let directories = match variable(DIRECTORY_VARIABLE) {
            Some(directory) => vec![PathBuf::from(directory)],
            None => std::env::current_exe()
                .ok()
                .and_then(|program| Some(program.parent()?.parent()?.join("share/mote")))
                .into_iter()
                .chain([PathBuf::from(SYSTEM_DIRECTORY)])
                .collect(),
        };
        let vmm = match variable(VMM_VARIABLE) {
            Some(path) => Some(PathBuf::from(path)),
            None => default_program().ok(),
        };
        Self { directories, vmm }
    }

    /// Everything in one directory.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            directories: vec![directory.to_owned()],
            vmm: Some(directory.join("mote-vmm")),
        }
    }

    /// The guest kernel.
    pub fn kernel(&self) -> Result<PathBuf, AssetError> {
        self.find(KERNEL)
    }

    /// The initramfs with the guest's init.
    pub fn initrd(&self) -> Result<PathBuf, AssetError> {
        self.find(INITRD)
    }

    /// What the two are, if whoever installed them has said it.
    pub fn boot_record(&self) -> Result<Option<BootRecord>, AssetError> {
        // Where one of them is missing, that is told when it is needed.
        let (Ok(kernel), Ok(initrd)) = (self.kernel(), self.initrd()) else {
            return Ok(None);
        };
        let Some(directory) = kernel.parent().filter(|at| initrd.parent() == Some(at)) else {
            return Ok(None);
        };
        let path = directory.join(RECORD);
        let read = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
        };
        read.map(Some)
            .map_err(|source| AssetError::Record { path, source })
    }

    /// The guest kernel and the initramfs, to be taken into a store, and what they are.
    pub fn boot_files(&self) -> Result<(BootFile, BootFile, Option<BootRecord>), AssetError> {
        let record = self.boot_record()?;
        let initrd = boot_file(self.initrd()?, record.map(|record| record.initrd))?;
        let kernel = boot_file(self.kernel()?, record.map(|record| record.kernel))?;
        Ok((kernel, initrd, record))
    }

    /// The guest kernel, to be taken into a store.
    pub fn kernel_file(&self) -> Result<BootFile, AssetError> {
        let record = self.boot_record()?;
        boot_file(self.kernel()?, record.map(|record| record.kernel))
    }

    /// The initramfs with the guest's init, to be taken into a store.
    pub fn initrd_file(&self) -> Result<BootFile, AssetError> {
        let record = self.boot_record()?;
        boot_file(self.initrd()?, record.map(|record| record.initrd))
    }

    /// `mote-vmm`.
    pub fn vmm(&self) -> Result<PathBuf, AssetError> {
        let path = self.vmm.clone().unwrap_or_else(|| "mote-vmm".into());
        if path.is_file() {
            Ok(path)
        } else {
            Err(AssetError::Vmm(path))
        }
    }

    fn find(&self, name: &'static str) -> Result<PathBuf, AssetError> {
        let mut candidates = self
            .directories
            .iter()
            .map(|directory| directory.join(name));
        candidates
            .find(|path| path.is_file())
            .ok_or_else(|| AssetError::NotFound {
                name,
                searched: self.directories.clone(),
            })
    }
}

/// Opens a file that a guest is to boot. Its bytes are compared with `identity` when they
/// are read; its length is now, so that a file that was replaced alone is not passed over.
pub fn boot_file(path: PathBuf, identity: Option<BlobIdentity>) -> Result<BootFile, AssetError> {
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (found, file) = match opened {
        Ok(opened) => opened,
        Err(source) => return Err(AssetError::Open { path, source }),
    };
    match identity {
        Some(BlobIdentity {
            bytes: expected, ..
        }) if expected != found => Err(AssetError::Length {
            path,
            expected,
            found,
        }),
        _ => Ok(BootFile {
            what: path.display().to_string(),
            file,
            identity,
        }),
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_that_has_a_file_wins() {
        let one = tempfile::tempdir().unwrap();
        let two = tempfile::tempdir().unwrap();
        std::fs::write(two.path().join(KERNEL), "").unwrap();
        let assets = Assets {
            directories: vec![one.path().into(), two.path().into()],
            vmm: None,
        };
        assert_eq!(assets.kernel().unwrap(), two.path().join(KERNEL));
        std::fs::write(one.path().join(KERNEL), "").unwrap();
        assert_eq!(assets.kernel().unwrap(), one.path().join(KERNEL));
        let message = assets.initrd().unwrap_err().to_string();
        assert!(message.contains(one.path().to_str().unwrap()), "{message}");
        assert!(message.contains(two.path().to_str().unwrap()), "{message}");
    }
    #[test]
    fn what_both_are_is_believed_where_both_are_beside_it() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hash = outboard::BlobHash::of(b"kernel");
        let identity = serde_json::json!({"hash": hash, "bytes": 6});
        let record = serde_json::json!({"kernel": identity, "initrd": identity});
        std::fs::write(one.path().join(KERNEL), "kernel").unwrap();
        std::fs::write(one.path().join(RECORD), record.to_string()).unwrap();
        std::fs::write(two.path().join(INITRD), "initrd").unwrap();
        let assets = Assets {
            directories: vec![one.path().into(), two.path().into()],
            vmm: None,
        };
        assert_eq!(assets.kernel_file().unwrap().identity, None);
        std::fs::write(one.path().join(INITRD), "kernel").unwrap();
        let found = assets.kernel_file().unwrap().identity.unwrap();
        assert_eq!((found.hash, found.bytes), (hash, 6));
        std::fs::write(one.path().join(INITRD), "another").unwrap();
        let error = assets.initrd_file().unwrap_err().to_string();
        assert!(error.contains("7 bytes, not 6"), "{error}");
        std::fs::write(one.path().join(RECORD), "{}").unwrap();
        let error = assets.initrd_file().unwrap_err();
        assert!(matches!(error, AssetError::Record { .. }), "{error}");
    }
}
