//! Debian packages: which are needed, why, and how they get here.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use crate::{command, progress};

/// A package and what shows that it is installed.
#[derive(Debug)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    /// What it is needed for.
    pub reason: &'static str,
    /// What it brings.
    pub evidence: Evidence,
}

/// What shows that a package is installed.
#[derive(Debug)]
pub enum Evidence {
    /// A program on `PATH`, or where Debian keeps the administrator's programs.
    Program(&'static str),
    /// One of these files.
    File(&'static [&'static str]),
}

/// For [`crate::debian_kernel`].
pub const FOR_DEBIAN_KERNEL: [Package; 1] = [KMOD];

/// For the lab.
pub fn for_lab() -> [Package; 4] {
    [QEMU, virtiofsd(), KMOD, E2FSPROGS]
}

/// For the benchmarks: what mote is measured beside.
pub const FOR_BENCH: [Package; 1] = [Package {
    reason: "mote-vmm is measured beside its microvm machine",
    ..QEMU
}];

/// For the benchmark of images.
pub const FOR_BENCH_IMAGE: [Package; 2] = [
    Package {
        name: "docker-registry",
        reason: "the registry that an image is started from",
        evidence: Evidence::Program("docker-registry"),
    },
    Package {
        name: "iproute2",
        reason: "makes the network slow that is between them",
        evidence: Evidence::Program("tc"),
    },
];

/// For the benchmark of the network.
pub const FOR_BENCH_NET: [Package; 2] = [
    Package {
        name: "iperf3",
        reason: "the host's end of the streams that are measured",
        evidence: Evidence::Program("iperf3"),
    },
    Package {
        name: "iproute2",
        reason: "makes the tap interface that is measured",
        evidence: Evidence::Program("ip"),
    },
];

const QEMU: Package = Package {
    name: "qemu-system-x86",
    reason: "the lab is a QEMU machine that emulates hardware virtualization",
    evidence: Evidence::Program("qemu-system-x86_64"),
};

const E2FSPROGS: Package = Package {
    name: "e2fsprogs",
    reason: "the lab's scratch disk is ext4",
    evidence: Evidence::Program("mkfs.ext4"),
};

/// For building the guest's kernel.
pub const FOR_KERNEL: [Package; 7] = [
    Package {
        name: "make",
        reason: "builds the guest's kernel",
        evidence: Evidence::Program("make"),
    },
    Package {
        name: "gcc",
        reason: "compiles the guest's kernel",
        evidence: Evidence::Program("gcc"),
    },
    Package {
        name: "flex",
        reason: "the kernel's build generates scanners with it",
        evidence: Evidence::Program("flex"),
    },
    Package {
        name: "bison",
        reason: "the kernel's build generates parsers with it",
        evidence: Evidence::Program("bison"),
    },
    Package {
        name: "bc",
        reason: "the kernel's build computes constants with it",
        evidence: Evidence::Program("bc"),
    },
    Package {
        name: "libelf-dev",
        reason: "the kernel's build checks its own object files (objtool)",
        evidence: Evidence::File(&["/usr/include/libelf.h"]),
    },
    XZ,
];

/// For [`crate::demo_image`].
pub const FOR_DEMO_IMAGE: [Package; 1] = [Package {
    name: "mmdebstrap",
    reason: "makes the demo image from Debian packages",
    evidence: Evidence::Program("mmdebstrap"),
}];

/// For tests that compare with the tools of others.
pub const FOR_TESTS: [Package; 7] = [
    Package {
        name: "erofs-utils",
        reason: "fsck.erofs judges the images that the tests write",
        evidence: Evidence::Program("fsck.erofs"),
    },
    Package {
        name: "umoci",
        reason: "the tests load images that it made",
        evidence: Evidence::Program("umoci"),
    },
    Package {
        name: "skopeo",
        reason: "the tests load images that it copied",
        evidence: Evidence::Program("skopeo"),
    },
    Package {
        name: "iproute2",
        reason: "the tests make and look at network interfaces with it",
        evidence: Evidence::Program("ip"),
    },
    Package {
        name: "docker-registry",
        reason: "the tests push to it and pull from it",
        evidence: Evidence::Program("docker-registry"),
    },
    Package {
        name: "apache2-utils",
        reason: "htpasswd makes the passwords that the tests' registry asks for",
        evidence: Evidence::Program("htpasswd"),
    },
    Package {
        name: "openssl",
        reason: "makes the certificates and signs the tokens of the tests' registry",
        evidence: Evidence::Program("openssl"),
    },
];

const XZ: Package = Package {
    name: "xz-utils",
    reason: "unpacks the kernel's source",
    evidence: Evidence::Program("xz"),
};

const KMOD: Package = Package {
    name: "kmod",
    reason: "depmod indexes the modules of the lab's kernel, modprobe loads them",
    evidence: Evidence::Program("depmod"),
};

/// The places of virtiofsd in Debian 13 and 12.
pub const VIRTIOFSD_PATHS: &[&str] = &["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// In Debian 12 virtiofsd comes with QEMU; later it is a package of its own.
fn virtiofsd() -> Package {
    let in_qemu = debian_codename().is_ok_and(|codename| codename == "bookworm");
    Package {
        name: if in_qemu {
            "qemu-system-common"
        } else {
            "virtiofsd"
        },
        reason: "virtiofsd shares this machine's files with the lab",
        evidence: Evidence::File(VIRTIOFSD_PATHS),
    }
}

/// Installs the packages among `needed` that are missing, or says which they
/// are where that is not possible.
pub fn require<'a>(needed: impl IntoIterator<Item = &'a Package>) -> Result<()> {
    let missing: Vec<&Package> = needed
        .into_iter()
        .filter(|package| !is_present(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let list = missing
        .iter()
        .map(|package| format!("  {}: {}", package.name, package.reason))
        .collect::<Vec<_>>()
        .join("\n");
    if debian_codename().is_err() || find_program("apt-get").is_none() {
        bail!(
            "this is not Debian, so nothing is installed. Install what Debian calls\n{list}\n\
             and run the command again"
        );
    }
    progress::say(&format!("installing with apt-get what is missing:\n{list}"));
    if !are_known(&names) {
        update_lists()?;
    }
    if install(&names).is_err() {
        // The lists may name versions that the mirror has replaced since.
        update_lists()?;
        install(&names)?;
    }
    let still: Vec<&str> = missing
        .iter()
        .filter(|package| !is_present(package))
        .map(|package| package.name)
        .collect();
    if !still.is_empty() {
        bail!(
            "apt-get installed {} but what they bring is not there",
            still.join(", ")
        );
    }
    Ok(())
}

/// One at a time in this process: apt-get does not wait for another.
static APT: Mutex<()> = Mutex::new(());

/// Fetches the lists of available packages.
pub fn update_lists() -> Result<()> {
    let _alone = APT.lock();
    let step = progress::step("updating the package lists (apt-get update)");
    command::lines(as_root("apt-get").args(["update"]), |line| {
        step.detail(line)
    })
    .context("the package lists could not be updated; is the network up?")
}

/// Packages of which the tests want a program, and the service that Debian would
/// start with it.
const UNWANTED_SERVICES: [(&str, &str); 1] = [("docker-registry", "docker-registry.service")];

fn install(names: &[&str]) -> Result<()> {
    let _alone = APT.lock();
    let is_installed = |(name, _): &&(&str, &str)| names.contains(name);
    let services = UNWANTED_SERVICES.iter().filter(is_installed);
    let services: Vec<&str> = services.map(|(_, service)| *service).collect();
    if services.is_empty() || !Path::new("/run/systemd/system").exists() {
        return apt_install(names);
    }
    let systemctl = |arguments: &[&str]| {
        let mut command = as_root("systemctl");
        command::output(command.args(arguments).args(&services))
    };
    // A masked unit is not started; this mask does not outlive the boot.
    systemctl(&["mask", "--runtime"])
        .context("cannot keep services stopped that come with the packages")?;
    let installed = apt_install(names);
    if installed.is_ok() {
        systemctl(&["disable"]).context("cannot disable services that came with the packages")?;
    }
    systemctl(&["unmask", "--runtime"]).context("cannot unmask services")?;
    installed
}

fn apt_install(names: &[&str]) -> Result<()> {
    let step = progress::step(format!("installing {}", names.join(", ")));
    let mut apt = as_root("env");
    apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install"])
        .args(["--yes", "--no-install-recommends"])
        .args(names);
    command::lines(&mut apt, |line| step.detail(line))
}

/// Whether apt's lists know all of `names`.
fn are_known(names: &[&str]) -> bool {
    names.iter().all(|name| {
        command::output(Command::new("apt-cache").args(["show", "--no-all-versions", name]))
            .is_ok_and(|text| !text.trim().is_empty())
    })
}

fn is_present(package: &Package) -> bool {
    match package.evidence {
        Evidence::Program(name) => find_program(name).is_some(),
        Evidence::File(paths) => paths.iter().any(|path| Path::new(path).exists()),
    }
}

/// A command run by root: through sudo for anyone else.
pub fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

/// Looks `name` up in `PATH` and in the directories of system administration,
/// which the `PATH` of other users lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// The code name of the Debian release this is, such as `bookworm`.
pub fn debian_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    codename(&text).context("this is not Debian, whose kernel and packages the lab is made of")
}

fn codename(os_release: &str) -> Option<String> {
    let value = |name: &str| {
        os_release.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key == name).then(|| value.trim_matches('"').to_owned())
        })
    };
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_has_a_debian_codename() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(debian).as_deref(), Some("bookworm"));
        assert_eq!(codename("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
        assert_eq!(codename(""), None);
    }

    #[test]
    fn programs_are_found_where_only_root_has_them_on_its_path() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}
