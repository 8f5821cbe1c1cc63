//! The kernel a guest runs: what kind of file it is, and the modules it needs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use initramfs::{Archive, CpioError, ModuleError, ModuleTree};
use rustix::fs::{MemfdFlags, memfd_create};

/// Modules without which no image can be run: the bus, the disk, the file
/// systems, the connection to the host.
const NEEDED: [&str; 5] = [
    "virtio_mmio",
    "virtio_blk",
    "erofs",
    "overlay",
    "vmw_vsock_virtio_transport",
];
/// Modules that are loaded where the kernel has them. EROFS needs CRC32C, which
/// the kernel asks for by its algorithm's name and not as a dependency; so these
/// come first.
const WANTED_FIRST: [&str; 2] = ["crc32c_generic", "crc32c_intel"];
const WANTED_LAST: [&str; 3] = ["virtio_rng", "virtio_net", "virtiofs"];

/// Where the guest's init looks for modules.
const MODULE_DIRECTORY: &str = "modules";
/// The list of modules, one file name a line, in the order of loading.
const MODULE_LIST: &str = "modules/load";
/// An archive begins at a multiple of 4 in an initramfs (Linux,
/// `Documentation/driver-api/early-userspace/buffer-format.rst`).
const ARCHIVE_ALIGNMENT: u64 = 4;

/// A kernel file that has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelKind {
    /// An ELF `vmlinux`, which is one of our own with everything built in.
    Vmlinux,
    /// A `bzImage`, as distributions ship it.
    BzImage {
        /// Such as `6.1.0-30-cloud-amd64`; it names the directory of modules.
        version: String,
    },
}

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be opened or read.
    #[error("cannot read the kernel {}", path.display())]
    Read {
        /// The kernel.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a kernel: it is neither an x86-64 ELF vmlinux nor a bzImage", .0.display())]
    NotAKernel(PathBuf),
    /// No module tree for the kernel's version.
    #[error(
        "no modules for the kernel {} (version {version}): there is no {}; name their directory with --kernel-modules",
        kernel.display(),
        searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and no ")
    )]
    NoModules {
        /// The kernel.
        kernel: PathBuf,
        /// Its version.
        version: String,
        /// Where modules were looked for.
        searched: Vec<PathBuf>,
    },
    /// A module is missing or cannot be read.
    #[error("the kernel {} cannot run images", kernel.display())]
    Module {
        /// The kernel.
        kernel: PathBuf,
        /// Why.
        source: ModuleError,
    },
    /// The initramfs with the modules could not be made.
    #[error("cannot add modules to the initrd {}", initrd.display())]
    Initrd {
        /// The initrd they are added to.
        initrd: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Looks at a kernel file.
pub fn identify(path: &Path) -> Result<KernelKind, KernelError> {
    let read = |source| KernelError::Read {
        path: path.to_owned(),
        source,
    };
    let file = crate::open::at_once(path).map_err(read)?;
    if !file.metadata().map_err(read)?.is_file() {
        return Err(KernelError::NotAKernel(path.to_owned()));
    }
    let mut start = Vec::new();
    (&file).take(0x400).read_to_end(&mut start).map_err(read)?;
    if is_x86_64_executable(&start) {
        return Ok(KernelKind::Vmlinux);
    }
    if start.get(0x202..0x206) != Some(b"HdrS") || start.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) {
        return Err(KernelError::NotAKernel(path.to_owned()));
    }
    // The version string is 0x200 bytes after what this field says (Linux,
    // Documentation/arch/x86/boot.rst, "kernel_version").
    let Some([low, high]) = start.get(0x20e..0x210) else {
        return Err(KernelError::NotAKernel(path.to_owned()));
    };
    let offset = u64::from(*low) | u64::from(*high) << 8;
    let mut text = [0; 128];
    let count = file.read_at(&mut text, 0x200 + offset).map_err(read)?;
    let end = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
    let version = text[..count].split(end).next().unwrap_or_default();
    match std::str::from_utf8(version) {
        // It becomes part of a path.
        Ok(version) if !version.is_empty() && !version.contains('/') && version != ".." => {
            Ok(KernelKind::BzImage {
                version: version.to_owned(),
            })
        }
        _ => Err(KernelError::NotAKernel(path.to_owned())),
    }
}

/// A little-endian 64-bit ELF executable for x86-64 (ELF specification,
/// "ELF Header"; `e_machine` 62).
fn is_x86_64_executable(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF\x02\x01") && start.get(18..20) == Some(&[62, 0])
}

/// The module tree of a distribution's kernel: the one the user names, or the
/// one beside the kernel, or the one of this machine.
pub fn module_tree(
    kernel: &Path,
    version: &str,
    named: Option<&Path>,
) -> Result<ModuleTree, KernelError> {
    let directories = match named {
        // Either the tree itself or the directory of trees.
        Some(named) => vec![named.to_owned(), named.join(version)],
        None => {
            let beside = kernel.canonicalize().ok();
            let beside = beside
                .as_deref()
                .and_then(|path| path.parent()?.parent())
                .map(|root| root.join("lib/modules").join(version));
            let system = Path::new("/lib/modules").join(version);
            beside.into_iter().chain([system]).collect()
        }
    };
    let Some(found) = directories
        .iter()
        .find(|directory| directory.join("modules.dep").is_file())
    else {
        return Err(KernelError::NoModules {
            kernel: kernel.to_owned(),
            version: version.to_owned(),
            searched: directories,
        });
    };
    ModuleTree::open(found).map_err(|source| KernelError::Module {
        kernel: kernel.to_owned(),
        source,
    })
}

/// The initrd, followed by an archive with the modules a guest needs and the
/// list by which the init loads them; in memory, where nothing has to be
/// cleaned up.
pub fn initrd_with_modules(
    kernel: &Path,
    initrd: &Path,
    modules: &ModuleTree,
) -> Result<File, KernelError> {
    let wanted = |name: &&&str| modules.load_order(&[name]).is_ok();
    let names: Vec<&str> = WANTED_FIRST
        .iter()
        .filter(wanted)
        .chain(&NEEDED)
        .chain(WANTED_LAST.iter().filter(wanted))
        .copied()
        .collect();
    let failed = |source| KernelError::Module {
        kernel: kernel.to_owned(),
        source,
    };
    let order = modules.load_order(&names).map_err(failed)?;
    let initrd_error = |source| KernelError::Initrd {
        initrd: initrd.to_owned(),
        source,
    };
    let cpio_error = |error: CpioError| initrd_error(io::Error::other(error));

    let mut combined = copy_of(initrd).map_err(initrd_error)?;
    let mut archive = Archive::new(&mut combined);
    archive
        .directory(MODULE_DIRECTORY, 0o755)
        .map_err(cpio_error)?;
    let mut list = String::new();
    for module in &order {
        let name = format!("{}.ko", module.name);
        let content = module.read().map_err(failed)?;
        archive
            .file(&format!("{MODULE_DIRECTORY}/{name}"), 0o644, &content)
            .map_err(cpio_error)?;
        list.push_str(&name);
        list.push('\n');
    }
    archive
        .file(MODULE_LIST, 0o644, list.as_bytes())
        .map_err(cpio_error)?;
    archive.finish().map_err(cpio_error)?;
    combined.rewind().map_err(initrd_error)?;
    Ok(combined)
}

/// A copy in memory, padded so that another archive may follow.
fn copy_of(initrd: &Path) -> io::Result<File> {
    let mut copy = File::from(memfd_create("initrd", MemfdFlags::CLOEXEC)?);
    let length = io::copy(&mut File::open(initrd)?, &mut copy)?;
    let padding = length.next_multiple_of(ARCHIVE_ALIGNMENT) - length;
    copy.write_all(&[0; ARCHIVE_ALIGNMENT as usize][..padding as usize])?;
    copy.seek(SeekFrom::End(0))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn bzimage(version: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x2000];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x1000u16.to_le_bytes());
        bytes[0x1200..0x1200 + version.len()].copy_from_slice(version);
        bytes
    }

    #[test]
    fn an_elf_and_a_bzimage_are_told_apart() {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        assert_eq!(identify(file(&elf).path()).unwrap(), KernelKind::Vmlinux);
        let image = bzimage(b"6.1.0-30-cloud-amd64 (debian@x) #1 SMP\0");
        assert_eq!(
            identify(file(&image).path()).unwrap(),
            KernelKind::BzImage {
                version: "6.1.0-30-cloud-amd64".into()
            }
        );
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mut arm = vec![0; 64];
        arm[..6].copy_from_slice(b"\x7fELF\x02\x01");
        arm[18] = 183;
        for bytes in [
            &b""[..],
            b"#!/bin/sh\n",
            &[0; 0x1000],
            &arm,
            &bzimage(b"")[..0x300],
            &bzimage(b"")[..0x206],
            &bzimage(b"../../etc x"),
        ] {
            let outcome = identify(file(bytes).path());
            assert!(matches!(outcome, Err(KernelError::NotAKernel(_))));
        }
        assert!(matches!(
            identify(Path::new("/")),
            Err(KernelError::NotAKernel(_))
        ));
        assert!(matches!(
            identify(Path::new("/nonexistent")),
            Err(KernelError::Read { .. })
        ));
    }

    #[test]
    fn modules_are_found_beside_the_kernel_or_where_the_user_says() {
        let root = tempfile::tempdir().unwrap();
        let boot = root.path().join("boot");
        let tree = root.path().join("lib/modules/6.1-test");
        std::fs::create_dir_all(&boot).unwrap();
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("modules.dep"), "").unwrap();
        let kernel = boot.join("vmlinuz");
        std::fs::write(&kernel, bzimage(b"6.1-test ")).unwrap();

        assert!(module_tree(&kernel, "6.1-test", None).is_ok());
        assert!(module_tree(&kernel, "6.1-test", Some(&tree)).is_ok());
        let trees = root.path().join("lib/modules");
        assert!(module_tree(&kernel, "6.1-test", Some(&trees)).is_ok());
        let error = module_tree(&kernel, "6.1-other", None).unwrap_err();
        assert!(matches!(error, KernelError::NoModules { .. }));
    }

    #[test]
    fn modules_follow_the_initrd_in_the_order_of_loading() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path();
        let mut dependencies = String::new();
        for name in NEEDED {
            std::fs::write(tree.join(format!("{name}.ko")), name).unwrap();
            let needs = if name == "erofs" { " libcrc32c.ko" } else { "" };
            dependencies.push_str(&format!("{name}.ko:{needs}\n"));
        }
        for name in ["libcrc32c", "crc32c_generic"] {
            std::fs::write(tree.join(format!("{name}.ko")), name).unwrap();
            dependencies.push_str(&format!("{name}.ko:\n"));
        }
        std::fs::write(tree.join("modules.dep"), dependencies).unwrap();
        let initrd = file(b"070701 initrd!");

        let modules = ModuleTree::open(tree).unwrap();
        let mut combined =
            initrd_with_modules(Path::new("vmlinuz"), initrd.path(), &modules).unwrap();
        let mut bytes = Vec::new();
        combined.read_to_end(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"070701 initrd!\x00\x00070701"));
        let list = "crc32c_generic.ko\nvirtio_mmio.ko\nvirtio_blk.ko\nlibcrc32c.ko\nerofs.ko\noverlay.ko\nvmw_vsock_virtio_transport.ko\n";
        let found = bytes
            .windows(list.len())
            .any(|part| part == list.as_bytes());
        assert!(found, "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_kernel_without_a_needed_module_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("modules.dep"), "").unwrap();
        let modules = ModuleTree::open(root.path()).unwrap();
        let initrd = file(b"");
        let outcome = initrd_with_modules(Path::new("vmlinuz"), initrd.path(), &modules);
        assert!(matches!(outcome, Err(KernelError::Module { .. })));
    }
}
