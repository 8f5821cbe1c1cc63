//! The kernel's source, from Debian's package `linux-source-X.Y`.
//!
//! The package is downloaded, which verifies it against the signed lists of the
//! distribution, and unpacked; it is never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::config::Series;
use crate::{cache, command, packages, progress};

/// The package that depends on the source of the distribution's kernel.
const METAPACKAGE: &str = "linux-source";

/// A source package that the distribution offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The series it belongs to.
    pub series: Series,
    /// The package's version, such as `6.1.170-3`.
    pub version: String,
    /// The package's name.
    package: String,
    /// What the distribution says it contains.
    sha256: String,
}

impl Source {
    /// The source of this distribution's kernel.
    pub fn of_distribution() -> Result<Self> {
        packages::debian_codename()
            .context("the guest's kernel is built from Debian's package linux-source")?;
        let metapackage = match describe(METAPACKAGE) {
            Ok(description) => description,
            Err(_) => {
                packages::update_lists()?;
                describe(METAPACKAGE)?
            }
        };
        let package = dependency(&metapackage).with_context(|| {
            format!("apt-cache names no source package that {METAPACKAGE} depends on")
        })?;
        parse(package, &describe(package)?)
    }

    /// What identifies the package's contents.
    pub fn identity(&self) -> String {
        format!("{} {} {}", self.package, self.version, self.sha256)
    }

    /// Unpacks the source into the empty directory `to`.
    pub fn unpack(&self, to: &Path) -> Result<()> {
        let archive = self.archive()?;
        let _step = progress::step(format!("unpacking {}", self.package));
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--xz", "--strip-components=1", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(to);
        command::output(&mut tar)?;
        Ok(())
    }

    /// The archive in the package, from the cache if it was downloaded before.
    fn archive(&self) -> Result<PathBuf> {
        let name = format!("{}_{}", self.package, self.version);
        let directory = cache::entry(&name, |directory| self.download(directory))?;
        Ok(directory.join(self.archive_name()))
    }

    fn archive_name(&self) -> String {
        format!("{}.tar.xz", self.package)
    }

    fn download(&self, directory: &Path) -> Result<()> {
        let _step = progress::step(format!("downloading {} {}", self.package, self.version));
        let version = format!("{}={}", self.package, self.version);
        let mut apt = Command::new("apt-get");
        apt.args(["download", &version]).current_dir(directory);
        if command::output(&mut apt).is_err() {
            // The lists may name a version that the mirror has replaced since.
            packages::update_lists()?;
            command::output(&mut apt).with_context(|| {
                format!("if {version} is no longer there, running this again uses the new one")
            })?;
        }
        let package = fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()?
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {version} left no .deb file"))?;
        let mut dpkg = Command::new("dpkg-deb");
        command::output(dpkg.arg("-x").arg(&package).arg(directory))?;
        fs::remove_file(&package)?;
        let name = self.archive_name();
        fs::rename(directory.join("usr/src").join(&name), directory.join(&name))
            .with_context(|| format!("{} has no /usr/src/{name}", self.package))?;
        fs::remove_dir_all(directory.join("usr"))?;
        Ok(())
    }
}

/// What apt knows of the version of `package` that it would install.
fn describe(package: &str) -> Result<String> {
    let mut apt = Command::new("apt-cache");
    let text = command::output(apt.args(["show", "--no-all-versions", package]))?;
    if text.trim().is_empty() {
        bail!("apt-cache knows no package {package}");
    }
    Ok(text)
}

fn field<'a>(description: &'a str, name: &str) -> Option<&'a str> {
    description
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// The source package that the metapackage described so depends on.
fn dependency(description: &str) -> Option<&str> {
    field(description, "Depends")?
        .split([',', '|', ' '])
        .find(|name| name.starts_with("linux-source-"))
}

fn parse(package: &str, description: &str) -> Result<Source> {
    let field = |name| {
        field(description, name)
            .map(str::to_owned)
            .with_context(|| format!("apt-cache tells no {name} of {package}"))
    };
    Ok(Source {
        series: package.trim_start_matches("linux-source-").parse()?,
        version: field("Version")?,
        package: package.to_owned(),
        sha256: field("SHA256")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_package_is_what_the_metapackage_depends_on() {
        let text = "Package: linux-source\nVersion: 6.1.170-3\n\
                    Depends: linux-source-6.1 (= 6.1.170-3)\n";
        assert_eq!(dependency(text), Some("linux-source-6.1"));
        assert_eq!(dependency("Package: linux-source\n"), None);
    }

    #[test]
    fn a_package_is_identified_by_version_and_contents() {
        let text = "Package: linux-source-6.1\nVersion: 6.1.170-3\nDescription: source\n \
                    Version: 9\nSHA256: 00ff\n";
        let source = parse("linux-source-6.1", text).unwrap();
        assert_eq!(source.series, "6.1".parse().unwrap());
        assert_eq!(source.version, "6.1.170-3");
        assert_eq!(source.identity(), "linux-source-6.1 6.1.170-3 00ff");
        assert!(parse("linux-source-6.1", "Version: 1\n").is_err());
        assert!(parse("linux-source-new", text).is_err());
    }
}
