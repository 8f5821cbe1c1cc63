//! From source and configuration to `vmlinux`, the same bits whenever and
//! wherever it is done.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::config::Request;
use super::source::Source;
use crate::{command, progress};

/// Everything the build sees of its environment: Debian's tools alone, and no
/// name, place or language of who builds. `KBUILD_BUILD_TIMESTAMP` is added:
/// the date of the source.
const ENVIRONMENT: [(&str, &str); 7] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
    ("KBUILD_BUILD_USER", "mote"),
    ("KBUILD_BUILD_HOST", "debian"),
    ("KBUILD_BUILD_VERSION", "1"),
    // Set but empty: no suffix from a version control system around the cache.
    ("LOCALVERSION", ""),
];

/// Ends make when this process is killed. Without it, a build would go on that
/// nobody waits for.
const SUPERVISION: [&str; 4] = ["setpriv", "--pdeathsig", "TERM", "make"];

/// Answers every question that the fragment leaves open with no.
const CONFIGURE: [&str; 2] = ["--silent", "allnoconfig"];

/// No `bzImage`: the VMM loads the ELF, and the rest takes time to build.
const TARGETS: [&str; 1] = ["vmlinux"];

/// The program headers are all that a VMM reads, and the ELF note with the PVH
/// entry is in a segment.
const STRIP: [&str; 3] = ["strip", "--strip-all", "--remove-section=.comment"];

/// The compiler and linker that would be used, by their first lines of
/// `--version`.
pub fn toolchain() -> Result<String> {
    let first_line = |program: &str| -> Result<String> {
        let text = command::output(in_environment(program).arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    Ok(format!("{}\n{}", first_line("gcc")?, first_line("ld")?))
}

/// What this file does, as far as the result depends on it.
pub fn identity() -> String {
    format!("{ENVIRONMENT:?} {CONFIGURE:?} {TARGETS:?} {STRIP:?}")
}

/// Builds in the empty directory `work` and leaves `vmlinux` and `config` in
/// `output`.
pub fn build(
    source: &Source,
    request: &Request,
    jobs: usize,
    work: &Path,
    output: &Path,
) -> Result<()> {
    source.unpack(work)?;
    let date = date_of(&work.join("Makefile"))?;
    configure(request, work)?;

    let step = progress::step(format!("building the guest's kernel {}", source.version));
    let mut make = in_environment(SUPERVISION[0]);
    make.args(&SUPERVISION[1..])
        .current_dir(work)
        .env("KBUILD_BUILD_TIMESTAMP", &date)
        .arg(format!("--jobs={jobs}"))
        .args(TARGETS);
    let mut progress = Progress::new();
    command::lines(&mut make, |line| {
        if let Some(detail) = progress.line(line) {
            step.detail(&detail);
        }
    })?;
    drop(step);

    let vmlinux = output.join("vmlinux");
    let mut strip = in_environment(STRIP[0]);
    strip
        .args(&STRIP[1..])
        .arg("-o")
        .arg(&vmlinux)
        .arg(work.join("vmlinux"));
    command::output(&mut strip)?;
    refuse_path(&vmlinux, work)?;
    fs::copy(work.join(".config"), output.join("config")).context("the build left no .config")?;
    for name in ["vmlinux", "config"] {
        // What is renamed into place later must be on the disk by then.
        File::open(output.join(name))
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

fn in_environment(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(ENVIRONMENT);
    command
}

/// Answers the kernel's questions and checks that the answers were taken.
fn configure(request: &Request, work: &Path) -> Result<()> {
    let fragment = work.join("guest.config");
    fs::write(&fragment, request.to_fragment())
        .with_context(|| format!("cannot write {}", fragment.display()))?;
    let mut make = in_environment("make");
    make.current_dir(work)
        .env("KCONFIG_ALLCONFIG", &fragment)
        .args(CONFIGURE);
    command::output(&mut make)?;
    let config =
        fs::read_to_string(work.join(".config")).context("the configuration left no .config")?;
    let unmet = request.unmet(&config);
    if !unmet.is_empty() {
        bail!(
            "the kernel cannot be configured as guest-images/kernel/config asks; a symbol was \
             renamed, or something it depends on is missing:\n  {}",
            unmet.join("\n  ")
        );
    }
    Ok(())
}

/// When `file` was last changed, as `date` prints it: Debian gives all files of
/// a source package dates of its changelog.
fn date_of(file: &Path) -> Result<String> {
    let modified = fs::metadata(file)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("cannot read {}", file.display()))?;
    let seconds = seconds_since_epoch(modified);
    let mut date = in_environment("date");
    let text = command::output(date.args(["--utc", &format!("--date=@{seconds}")]))?;
    Ok(text.trim().to_owned())
}

fn seconds_since_epoch(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Fails if the directory's name found its way into the kernel: it would not be
/// the same if it was built elsewhere.
fn refuse_path(kernel: &Path, directory: &Path) -> Result<()> {
    let contents = fs::read(kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
    let name = directory.as_os_str().as_encoded_bytes();
    if contents.windows(name.len()).any(|window| window == name) {
        bail!(
            "the kernel contains the name of the directory it was built in, {}",
            directory.display()
        );
    }
    Ok(())
}

/// Follows what make prints.
struct Progress {
    compiled: usize,
}

impl Progress {
    fn new() -> Self {
        Self { compiled: 0 }
    }

    /// What to show after make has printed `line`, if it is about a file.
    fn line(&mut self, line: &str) -> Option<String> {
        let (action, file) = line.trim_start().split_once(' ')?;
        let file = file.trim_start();
        match action {
            "CC" | "AS" | "HOSTCC" => self.compiled += 1,
            "AR" | "LD" | "OBJCOPY" | "VDSO" | "GZIP" | "BUILD" => {}
            _ => return None,
        }
        Some(format!("{} files compiled, {file}", self.compiled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn compiled_files_are_counted_and_other_lines_are_not_shown() {
        let mut progress = Progress::new();
        let mut shown = |line| progress.line(line);
        assert_eq!(
            shown("  CC      init/main.o").unwrap(),
            "1 files compiled, init/main.o"
        );
        assert_eq!(shown("  AS      a.o").unwrap(), "2 files compiled, a.o");
        assert_eq!(
            shown("  AR      init/built-in.a").unwrap(),
            "2 files compiled, init/built-in.a"
        );
        assert!(shown("make[1]: Entering directory '/x'").is_none());
        assert!(shown("warning: something").is_none());
        assert!(shown("").is_none());
    }

    #[test]
    fn a_kernel_that_names_its_build_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        fs::write(&kernel, "\0./include/linux/mm.h\0").unwrap();
        refuse_path(&kernel, directory.path()).unwrap();
        let bytes = format!("\0{}/include/linux/mm.h\0", directory.path().display());
        fs::write(&kernel, bytes).unwrap();
        assert!(refuse_path(&kernel, directory.path()).is_err());
    }

    #[test]
    fn the_date_of_the_build_is_that_of_the_source() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("Makefile");
        let file = File::create(&path).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        file.set_modified(time).unwrap();
        assert_eq!(date_of(&path).unwrap(), "Tue Nov 14 22:13:20 UTC 2023");
    }
}
