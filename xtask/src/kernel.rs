//! The guest's kernel: built from Debian's source with the configuration in
//! guest-images/kernel, kept in the cache, and the same bit for bit wherever it
//! is built from the same inputs.

mod config;
mod recipe;
mod source;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use config::Request;
use source::Source;

use crate::{cache, packages, progress, workspace};

/// Where the configuration is, in the repository.
const CONFIGURATION: &str = "guest-images/kernel/config";

/// How much of the key's hash is in the name of a cache entry: 64 bits.
const KEY_DIGITS: usize = 16;

/// Builds the guest's kernel, or finds it in the cache.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// How many compilers run at once [default: one for each processor]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Build once more, elsewhere, and fail unless the result is the same bit for bit
    #[arg(long)]
    check_reproducible: bool,
}

/// A kernel in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel as an ELF file without symbols.
    pub vmlinux: PathBuf,
    /// Its whole configuration.
    pub config: PathBuf,
    /// What it was built from, as a hash: source, configuration, compiler and
    /// recipe.
    pub key: String,
}

/// Builds the kernel and says where it is.
pub fn main(options: &Options) -> Result<u8> {
    let kernel = build(options)?;
    for file in [&kernel.vmlinux, &kernel.config] {
        println!("{}", file.display());
    }
    Ok(0)
}

/// Builds the kernel unless the cache has it.
pub fn build(options: &Options) -> Result<Kernel> {
    packages::require(&packages::FOR_KERNEL)?;
    let source = Source::of_distribution()?;
    let request = config::read(&workspace::root().join(CONFIGURATION), source.series)?;
    let key = key(&[
        &source.identity(),
        &request.to_fragment(),
        &recipe::toolchain()?,
        &recipe::identity(),
    ]);
    let jobs = match options.jobs {
        Some(jobs) => jobs.into(),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let inputs = Inputs {
        source,
        request,
        jobs,
    };
    let name = format!("kernel-{}-{}", inputs.source.version, &key[..KEY_DIGITS]);
    let directory = cache::entry(&name, |directory| {
        remove_abandoned(&cache::directory()?, &name);
        inputs.build(directory)
    })?;
    let kernel = Kernel {
        vmlinux: directory.join("vmlinux"),
        config: directory.join("config"),
        key,
    };
    if options.check_reproducible {
        check_reproducible(&inputs, &kernel)?;
    }
    Ok(kernel)
}

struct Inputs {
    source: Source,
    request: Request,
    jobs: usize,
}

impl Inputs {
    /// Builds the kernel into `directory`.
    fn build(&self, directory: &Path) -> Result<()> {
        let work = directory.join("build");
        fs::create_dir(&work).with_context(|| format!("cannot create {}", work.display()))?;
        recipe::build(&self.source, &self.request, self.jobs, &work, directory)?;
        let _step = progress::step("removing the kernel's build directory");
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
    }
}

/// Removes what killed builds of other kernels than `name` have left in the
/// cache: each is nearly 2 GB. The lock of a build under way is held.
fn remove_abandoned(cache: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for partial in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let stem = partial.file_stem().unwrap_or_default().to_string_lossy();
        let is_partial = partial.extension().is_some_and(|it| it == "partial");
        if !is_partial || !stem.starts_with("kernel-") || stem == name {
            continue;
        }
        let Ok(lock) = File::create(partial.with_extension("lock")) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // It is in nobody's way: a failure is not worth a word.
            let _ = fs::remove_dir_all(&partial);
        }
    }
}

/// Builds `kernel` again in a directory of another name.
fn check_reproducible(inputs: &Inputs, kernel: &Kernel) -> Result<()> {
    let again = tempfile::Builder::new()
        .prefix("kernel-again-")
        .tempdir_in(cache::directory()?)
        .context("cannot create a second build directory")?;
    inputs.build(again.path())?;
    for first in [&kernel.vmlinux, &kernel.config] {
        let second = again.path().join(first.file_name().unwrap_or_default());
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        if read(first)? != read(&second)? {
            let kept = again.keep();
            bail!(
                "{} differs from a second build of it, which is in {}",
                first.display(),
                kept.display()
            );
        }
    }
    eprintln!("a second build gave the same bits");
    Ok(())
}

/// A hash of all parts, apart from one another.
fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_partial_kernels_that_nobody_builds_are_removed() {
        let cache = tempfile::tempdir().unwrap();
        let path = |name: &str| cache.path().join(name);
        let stay = [
            "kernel-1.2-own.partial",
            "kernel-1.2-busy.partial",
            "kernel-1.2-done",
            "other-1.2.partial",
        ];
        for name in stay.iter().chain(&["kernel-1.2-left.partial"]) {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "").unwrap();
        }
        let lock = File::create(path("kernel-1.2-busy.lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        remove_abandoned(cache.path(), "kernel-1.2-own");
        for name in stay {
            assert!(path(name).join("file").exists(), "{name}");
        }
        assert!(!path("kernel-1.2-left.partial").exists());
    }

    #[test]
    fn the_key_changes_with_each_part_and_with_where_parts_end() {
        let base = key(&["source", "config", "gcc"]);
        assert_eq!(base.len(), 64);
        assert_eq!(base, key(&["source", "config", "gcc"]));
        for other in [
            ["source2", "config", "gcc"],
            ["source", "config2", "gcc"],
            ["source", "config", "gcc2"],
            ["sourcec", "onfig", "gcc"],
        ] {
            assert_ne!(base, key(&other));
        }
    }
}
