//! What this machine can do: a list of checks, each with what was found and the
//! one thing to do about it.

mod devices;
mod features;
mod guest;
mod kvm;
mod resources;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::assets::Assets;

pub use kvm::KvmKind;
pub use resources::memory_total_bytes;

/// Where checks look. Tests look into trees of their own.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/`.
    pub root: PathBuf,
    /// The store's directory.
    pub store: PathBuf,
    /// The files mote is installed with.
    pub assets: Assets,
}

impl Host {
    /// This machine.
    pub fn this_one() -> Self {
        Self {
            root: PathBuf::from("/"),
            store: crate::store::Store::default_root(),
            assets: Assets::locate(),
        }
    }

    /// An absolute path of the machine.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a small file of `/proc` or `/sys`.
    fn read(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.path(path))
    }
}

/// One thing to look at.
#[derive(Debug)]
pub struct Check {
    /// How programs know it.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether no microVM with Linux can run without it.
    pub required: bool,
    run: fn(&Host) -> Finding,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it is there and good enough.
    pub status: Status,
    /// What is there.
    pub found: String,
    /// The one thing to do, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What kind of KVM there is; the other checks have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<KvmKind>,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is there and good enough.
    Ok,
    /// It is not.
    Missing,
}

impl Finding {
    fn ok(found: impl Into<String>) -> Self {
        Self {
            status: Status::Ok,
            found: found.into(),
            advice: None,
            kvm: None,
        }
    }

    fn missing(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            status: Status::Missing,
            found: found.into(),
            advice: Some(advice.into()),
            kvm: None,
        }
    }
}

/// Every check, what is required first.
pub const CHECKS: &[Check] = &[
    kvm::CHECK,
    guest::VMM,
    guest::KERNEL,
    guest::INITRD,
    features::KERNEL,
    resources::MEMORY,
    resources::DISK,
    devices::TUN,
    devices::VHOST_NET,
    devices::VHOST_VSOCK,
    features::CGROUP,
    features::OVERLAY,
    features::USER_NAMESPACES,
];

/// A check and what it found.
#[derive(Debug, Serialize)]
pub struct CheckResult {
    /// How programs know the check.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether no microVM with Linux can run without it.
    pub required: bool,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// Whether microVMs with Linux can run.
    pub can_run_linux: bool,
    /// Every check, in order.
    pub checks: Vec<CheckResult>,
}

/// Runs every check.
pub fn diagnose(host: &Host) -> Diagnosis {
    let checks: Vec<CheckResult> = CHECKS
        .iter()
        .map(|check| CheckResult {
            name: check.name,
            purpose: check.purpose,
            required: check.required,
            finding: (check.run)(host),
        })
        .collect();
    Diagnosis {
        can_run_linux: checks
            .iter()
            .all(|check| !check.required || check.finding.status == Status::Ok),
        checks,
    }
}

/// The nearest part of a path that exists.
fn nearest_existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that is an empty directory.
    pub fn empty_host() -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        let host = Host {
            root: directory.path().to_owned(),
            store: directory.path().join("var/lib/mote"),
            assets: Assets::in_directory(&directory.path().join("assets")),
        };
        (directory, host)
    }

    /// Writes a file of such a machine.
    pub fn put(host: &Host, path: &str, text: &str) {
        let path = host.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_machine_with_nothing_can_run_nothing_and_every_lack_has_its_advice() {
        let (_directory, host) = empty_host();
        let diagnosis = diagnose(&host);
        assert!(!diagnosis.can_run_linux);
        for check in &diagnosis.checks {
            let advice = check.finding.advice.as_deref().unwrap_or_default();
            let missing = check.finding.status == Status::Missing;
            assert_eq!(missing, !advice.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn names_are_unique_and_every_check_says_what_it_is_for() {
        let mut names: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
        assert!(CHECKS.iter().all(|check| !check.purpose.is_empty()));
    }
}
