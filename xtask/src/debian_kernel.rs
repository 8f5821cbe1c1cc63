//! Debian's kernel for cloud machines, unpacked into the cache: the lab's
//! kernel, and a guest kernel that nobody tuned.
//!
//! The package is downloaded and unpacked, never installed: installing a kernel
//! touches the machine's boot loader.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cache, command, packages, progress};

/// The package that depends on the current kernel package.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel and its modules.
#[derive(Debug, Clone)]
pub struct DebianKernel {
    /// The kernel, a bzImage.
    pub image: PathBuf,
    /// The directory that holds `VERSION/modules.dep` and so on.
    pub modules_root: PathBuf,
    /// The module tree: `modules_root/VERSION`.
    pub modules: PathBuf,
}

/// The kernel from the cache, downloaded if it is not there.
pub fn fetch() -> Result<DebianKernel> {
    let release = packages::debian_codename()?;
    let root = cache::entry(&format!("debian-kernel-{release}"), |directory| {
        packages::require(&packages::FOR_DEBIAN_KERNEL)?;
        let _step = progress::step("downloading Debian's cloud kernel");
        download(directory)
    })?;
    find(&root)
}

fn download(directory: &Path) -> Result<()> {
    let package = kernel_package()?;
    let mut download = Command::new("apt-get");
    command::output(download.args(["download", &package]).current_dir(directory))?;
    let archive = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no .deb file"))?;
    command::output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(directory),
    )?;
    fs::remove_file(&archive)?;
    // Since Debian 13 packages ship modules in /usr/lib alone.
    if !directory.join("lib/modules").is_dir() {
        fs::create_dir_all(directory.join("lib"))?;
        fs::rename(
            directory.join("usr/lib/modules"),
            directory.join("lib/modules"),
        )
        .context("the kernel package has no modules where they were looked for")?;
    }
    let kernel = find(directory)?;
    let version = kernel.modules.file_name().unwrap_or_default();
    // The package runs depmod when it is installed; modprobe needs its files.
    let mut depmod = Command::new(packages::find_program("depmod").context("depmod is missing")?);
    command::output(depmod.arg("-b").arg(directory).arg(version))?;
    Ok(())
}

/// The package with the kernel itself: `linux-image-6.1.0-30-cloud-amd64`.
fn kernel_package() -> Result<String> {
    let show = || {
        command::output(Command::new("apt-cache").args(["show", "--no-all-versions", METAPACKAGE]))
    };
    let description = match show() {
        Ok(text) if !text.trim().is_empty() => text,
        _ => {
            packages::update_lists()?;
            show()?
        }
    };
    description
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))
        .and_then(|list| {
            list.split([',', '|', ' '])
                .find(|name| name.starts_with("linux-image-"))
        })
        .map(str::to_owned)
        .with_context(|| format!("apt-cache names no kernel that {METAPACKAGE} depends on"))
}

fn find(root: &Path) -> Result<DebianKernel> {
    let modules_root = root.join("lib/modules");
    let mut versions = fs::read_dir(&modules_root)
        .with_context(|| format!("cannot read {}", modules_root.display()))?;
    let (Some(version), None) = (versions.next(), versions.next()) else {
        bail!(
            "{} does not hold the modules of exactly one kernel; remove {} to download it again",
            modules_root.display(),
            root.display()
        );
    };
    let modules = version?.path();
    let version = modules.file_name().unwrap_or_default().to_string_lossy();
    let image = root.join("boot").join(format!("vmlinuz-{version}"));
    if !image.is_file() {
        bail!(
            "{} is missing; remove {} to download it again",
            image.display(),
            root.display()
        );
    }
    Ok(DebianKernel {
        image,
        modules_root,
        modules,
    })
}
