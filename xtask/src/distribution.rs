//! Builds what a user of mote installs, under `target/distribution`:
//!
//! ```text
//! bin/mote  bin/mote-vmm
//! share/mote/vmlinux  share/mote/initrd  share/mote/boot.json
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use initramfs::{Archive, DeviceKind};
use outboard::BlobHash;
use serde_json::json;

use crate::background::Background;
use crate::cargo::{self, Executable};
use crate::{kernel, packages, progress, workspace};

/// Builds what a user of mote installs: programs, guest kernel and initrd.
///
/// The result is target/distribution, with bin/ and share/mote/.
#[derive(Debug, Default, clap::Args)]
pub struct Options {}

/// What was built.
#[derive(Debug)]
pub struct Distribution {
    /// The directory of `mote` and `mote-vmm`.
    pub programs: PathBuf,
}

impl Distribution {
    /// The guest's kernel.
    pub fn kernel(&self) -> PathBuf {
        workspace::distribution().join("share/mote/vmlinux")
    }

    /// The command `mote`.
    pub fn mote(&self) -> PathBuf {
        self.programs.join("mote")
    }
}

/// Builds everything and says where it is.
pub fn main(_options: &Options) -> Result<u8> {
    build()?;
    eprintln!("built {}", workspace::distribution().display());
    Ok(0)
}

/// Builds everything that is not up to date, the kernel beside the rest: while one
/// downloads, unpacks or links, which takes one processor or none, the other goes
/// on.
pub fn build() -> Result<Distribution> {
    packages::require(&packages::FOR_KERNEL)?;
    let kernel = Background::start(|| kernel::build(&kernel::Options::default()));
    let directory = workspace::distribution();
    let (programs, share) = (directory.join("bin"), directory.join("share/mote"));
    for directory in [&programs, &share] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let step = progress::step("building mote");
    let arguments = "build --release -p hostagent --bin mote -p vmm --bin mote-vmm";
    let built = cargo::build(arguments.split(' '), &step)?;
    for name in ["mote", "mote-vmm"] {
        place(&find(&built, name)?.path, &programs.join(name))?;
    }
    drop(step);

    let step = progress::step("building the guest's init");
    let built = cargo::build("build --profile guest -p guest-init".split(' '), &step)?;
    let init = fs::read(&find(&built, "guest-init")?.path).context("the guest's init")?;
    replace(&share.join("initrd"), &initrd(&init)?)?;
    drop(step);
    place(&kernel.wait()?.vmlinux, &share.join("vmlinux"))?;
    replace(&share.join("boot.json"), &boot_record(&share)?)?;
    Ok(Distribution { programs })
}

fn find<'a>(built: &'a [Executable], target: &str) -> Result<&'a Executable> {
    built
        .iter()
        .find(|executable| executable.target == target && !executable.is_test)
        .with_context(|| format!("cargo has built no {target}"))
}

/// The initramfs of a guest: its init, and what the kernel opens for it.
fn initrd(init: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.directory("/dev", 0o755)?;
    archive.device("/dev/console", 0o600, DeviceKind::Character(5, 1))?;
    archive.file("/init", 0o755, init)?;
    Ok(archive.finish()?)
}

/// Says what the kernel and the initrd are, so that no start has to read them to know it.
fn boot_record(share: &Path) -> Result<Vec<u8>> {
    let identity = |name: &str| {
        let path = share.join(name);
        let read = fs::File::open(&path).and_then(BlobHash::of_reader);
        let (hash, bytes) = read.with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(json!({"hash": hash.to_string(), "bytes": bytes}))
    };
    let record = json!({"kernel": identity("vmlinux")?, "initrd": identity("initrd")?});
    Ok(format!("{record:#}\n").into_bytes())
}

/// Makes `to` a copy of `from`. A `to` that is in use lives on for who uses it.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("cannot copy {} to {}", from.display(), to.display());
    let temporary = temporary_name(to);
    let _ = fs::remove_file(&temporary);
    // Not a second name of what the linker has written: what is written from its
    // beginning to its end, as by whoever installs a program, the page cache keeps in
    // larger pieces, and a program starts with fewer page faults.
    fs::copy(from, &temporary).with_context(failed)?;
    fs::rename(&temporary, to).with_context(failed)?;
    Ok(())
}

/// Makes `contents` those of `path`, unless they are already.
fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if fs::read(path).is_ok_and(|found| found == contents) {
        return Ok(());
    }
    let temporary = temporary_name(path);
    fs::write(&temporary, contents).with_context(failed)?;
    fs::rename(&temporary, path).with_context(failed)
}

/// Apart from that of another process that does the same.
fn temporary_name(path: &Path) -> PathBuf {
    path.with_extension(format!("new-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_placed_over_another_and_over_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::write(&to, "old").unwrap();
        fs::write(&from, "new").unwrap();
        for _ in 0..2 {
            place(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), "new");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn contents_are_written_only_if_they_differ() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, b"one").unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        replace(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }
}
