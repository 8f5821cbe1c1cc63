//! What mote brings itself: the VMM, the guest kernel, the guest init.

use std::path::PathBuf;

use super::{Check, Finding};
use crate::assets::AssetError;
use crate::store::BootFile;

/// `mote-vmm`.
pub const VMM: Check = Check {
    name: "mote-vmm",
    purpose: "is each microVM's process",
    required: true,
    run: |host| {
        found(
            host.assets.vmm(),
            "install mote-vmm beside mote, or set MOTE_VMM to its path",
        )
    },
};

/// The guest kernel.
pub const KERNEL: Check = Check {
    name: "guest-kernel",
    purpose: "is what guests boot",
    required: true,
    run: |host| found(place(host.assets.kernel_file()), ASSETS_ADVICE),
};

/// The guest's init.
pub const INITRD: Check = Check {
    name: "guest-initrd",
    purpose: "starts the workload in a guest",
    required: true,
    run: |host| found(place(host.assets.initrd_file()), ASSETS_ADVICE),
};

const ASSETS_ADVICE: &str = "build them with `cargo xtask kernel`, or set MOTE_ASSETS to the directory that has vmlinux and initrd";

fn place(file: Result<BootFile, AssetError>) -> Result<PathBuf, AssetError> {
    file.map(|file| file.what.into())
}

fn found(file: Result<PathBuf, AssetError>, advice: &str) -> Finding {
    match file {
        Ok(path) => Finding::ok(path.display().to_string()),
        Err(AssetError::NotFound { searched, .. }) => {
            let places: Vec<_> = searched
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Finding::missing(format!("not in {}", places.join(" or ")), advice)
        }
        Err(AssetError::Vmm(path)) => {
            Finding::missing(format!("not at {}", path.display()), advice)
        }
        Err(
            error @ (AssetError::Record { .. }
            | AssetError::Open { .. }
            | AssetError::Length { .. }),
        ) => Finding::missing(error.to_string(), advice),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{empty_host, put};
    use super::super::{Host, Status};
    use super::*;

    fn status(check: &Check, host: &Host) -> Status {
        (check.run)(host).status
    }

    #[test]
    fn each_file_is_looked_for_by_itself() {
        let (_directory, host) = empty_host();
        for (check, path) in [
            (&VMM, "/assets/mote-vmm"),
            (&KERNEL, "/assets/vmlinux"),
            (&INITRD, "/assets/initrd"),
        ] {
            assert_eq!(status(check, &host), Status::Missing);
            put(&host, path, "");
            assert_eq!(status(check, &host), Status::Ok);
        }
    }
}
