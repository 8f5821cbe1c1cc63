//! Kernel modules: which files a set of modules needs, and in what order.
//!
//! Reads what `depmod(8)` leaves in `/lib/modules/VERSION`: `modules.dep(5)`
//! and `modules.builtin`. Names are compared as the kernel does, with `-` and
//! `_` alike.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The largest module that is decompressed, in bytes. The largest of Debian's
/// kernels (amdgpu) has about 25 MiB with its symbols.
const MAX_MODULE_BYTES: u64 = 256 << 20;

/// Why a module could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file of the module tree could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// `modules.dep` is not there: nobody ran depmod.
    #[error(
        "{} has no modules.dep; run `depmod -b ROOT {version}` on the tree it belongs to",
        directory.display()
    )]
    NoDependencies {
        /// The module tree.
        directory: PathBuf,
        /// The kernel's version: the last component of the tree's path.
        version: String,
    },
    /// Neither a module nor built into the kernel.
    #[error("there is no kernel module {name} in {}", directory.display())]
    NotFound {
        /// The module's name.
        name: String,
        /// The module tree.
        directory: PathBuf,
    },
    /// A module that decompresses to more than any real module has.
    #[error("{} is larger than {MAX_MODULE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// The modules of one kernel: a directory `/lib/modules/VERSION`.
#[derive(Debug, Clone)]
pub struct ModuleTree {
    directory: PathBuf,
    loadable: BTreeMap<String, Loadable>,
    built_in: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct Loadable {
    path: PathBuf,
    needs: Vec<String>,
}

/// A module to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_` for `-`: `kvm_amd`.
    pub name: String,
    /// Its file, possibly compressed: `.ko`, `.ko.gz`, `.ko.xz` or `.ko.zst`.
    pub path: PathBuf,
}

impl Module {
    /// The module's ELF file, decompressed if it is compressed, as
    /// `finit_module(2)` takes it from any kernel.
    pub fn read(&self) -> Result<Vec<u8>, ModuleError> {
        let failed = |source| ModuleError::Io {
            path: self.path.clone(),
            source,
        };
        let file = io::BufReader::new(fs::File::open(&self.path).map_err(failed)?);
        let extension = self.path.extension().and_then(|text| text.to_str());
        let contents: Box<dyn Read> = match extension {
            Some("xz") => Box::new(lzma_rust2::XzReader::new(file, true)),
            Some("zst") => {
                Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?)
            }
            Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            _ => Box::new(file),
        };
        let mut bytes = Vec::new();
        contents
            .take(MAX_MODULE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAX_MODULE_BYTES {
            return Err(ModuleError::TooLarge {
                path: self.path.clone(),
            });
        }
        Ok(bytes)
    }
}

impl ModuleTree {
    /// Reads the module tree `directory`, such as `/lib/modules/6.1.0-30-amd64`.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, ModuleError> {
        let directory = directory.into();
        let path = directory.join("modules.dep");
        let dependencies = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => {
                let version = directory.file_name().unwrap_or_default();
                return Err(ModuleError::NoDependencies {
                    version: version.to_string_lossy().into_owned(),
                    directory,
                });
            }
            other => other.map_err(|source| ModuleError::Io { path, source })?,
        };
        let loadable = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let entry = Loadable {
                    path: directory.join(path),
                    needs: needs.split_whitespace().map(name_of).collect(),
                };
                (name_of(path), entry)
            })
            .collect();
        let path = directory.join("modules.builtin");
        let built_in = match fs::read_to_string(&path) {
            // Kernels without a single tristate option have none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            other => other
                .map_err(|source| ModuleError::Io { path, source })?
                .lines()
                .map(name_of)
                .collect(),
        };
        Ok(Self {
            directory,
            loadable,
            built_in,
        })
    }

    /// The modules that `names` need, themselves included, each after all it
    /// depends on and none twice. What is built into the kernel is left out.
    pub fn load_order<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<Module>, ModuleError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(&name_of(name.as_ref()), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        // Marked before its dependencies: a cycle in a broken modules.dep ends.
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let entry = self
            .loadable
            .get(name)
            .ok_or_else(|| ModuleError::NotFound {
                name: name.to_owned(),
                directory: self.directory.clone(),
            })?;
        // depmod writes the whole closure, what is loaded first at the end.
        for need in entry.needs.iter().rev() {
            self.visit(need, seen, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            path: entry.path.clone(),
        });
        Ok(())
    }
}

/// `kernel/arch/x86/kvm/kvm-amd.ko.xz` and `kvm-amd` are both `kvm_amd`.
fn name_of(path: &str) -> String {
    let path = Path::new(path.trim());
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name = file.split_once(".ko").map_or(&*file, |(name, _)| name);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn tree(dependencies: &str, built_in: &str) -> (tempfile::TempDir, ModuleTree) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("modules.dep"), dependencies).unwrap();
        fs::write(directory.path().join("modules.builtin"), built_in).unwrap();
        let tree = ModuleTree::open(directory.path()).unwrap();
        (directory, tree)
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    const DEPENDENCIES: &str = "\
kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko
kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko kernel/virt/lib/irqbypass.ko kernel/ccp.ko
kernel/virt/lib/irqbypass.ko:
kernel/ccp.ko:
kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz
kernel/fs/fuse/fuse.ko.xz:
";

    #[test]
    fn dependencies_come_first_and_once() {
        let (_directory, tree) = tree(DEPENDENCIES, "");
        let order = tree
            .load_order(&["kvm-amd", "irqbypass", "virtiofs"])
            .unwrap();
        assert_eq!(
            names(&order),
            ["ccp", "irqbypass", "kvm", "kvm_amd", "fuse", "virtiofs"]
        );
        assert!(order[5].path.ends_with("kernel/fs/fuse/virtiofs.ko.xz"));
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        let (_directory, tree) = tree(
            DEPENDENCIES,
            "kernel/fs/ext4/ext4.ko\nkernel/virt/lib/irqbypass.ko\n",
        );
        let order = tree.load_order(&["ext4", "kvm"]).unwrap();
        assert_eq!(names(&order), ["kvm"]);
    }

    #[test]
    fn an_unknown_module_is_named_in_the_error() {
        let (_directory, tree) = tree(DEPENDENCIES, "");
        let error = tree.load_order(&["kvm_intel"]).unwrap_err();
        assert!(matches!(error, ModuleError::NotFound { name, .. } if name == "kvm_intel"));
    }

    #[test]
    fn a_dependency_cycle_ends() {
        let (_directory, tree) = tree("a.ko: b.ko\nb.ko: a.ko\n", "");
        assert_eq!(names(&tree.load_order(&["a"]).unwrap()), ["b", "a"]);
    }

    #[test]
    fn a_tree_without_modules_dep_tells_what_to_run() {
        let directory = tempfile::tempdir().unwrap();
        let error = ModuleTree::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("depmod -b"), "{error}");
    }

    #[test]
    fn compressed_modules_read_as_plain_ones() {
        let directory = tempfile::tempdir().unwrap();
        let contents = b"\x7fELF and the rest".repeat(1000);
        let gzip = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(&contents).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = zstd::encode_all(contents.as_slice(), 3).unwrap();
        for (file, bytes) in [
            ("plain.ko", contents.as_slice()),
            ("a.ko.gz", gzip.as_slice()),
            ("a.ko.zst", zstd.as_slice()),
            ("a.ko.xz", include_bytes!("../testdata/module.ko.xz")),
        ] {
            let path = directory.path().join(file);
            fs::write(&path, bytes).unwrap();
            let module = Module {
                name: "a".to_owned(),
                path,
            };
            assert_eq!(module.read().unwrap(), contents, "{file}");
        }
    }

    #[test]
    fn a_truncated_module_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.ko.xz");
        let bytes = include_bytes!("../testdata/module.ko.xz");
        fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
        let module = Module {
            name: "a".to_owned(),
            path,
        };
        assert!(matches!(module.read(), Err(ModuleError::Io { .. })));
    }
}
