//! What a monitor runs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use outboard::{BlobHash, Builder};
use tempfile::TempDir;

use crate::error::{BenchError, host};

/// A machine that any monitor can be told to run: one vCPU and what is named here.
/// Its files are removed when this is dropped.
#[derive(Debug)]
pub struct Guest {
    directory: TempDir,
    /// An ELF file.
    pub kernel: PathBuf,
    /// By which we verify it.
    pub(super) kernel_hash: BlobHash,
    /// Its command line.
    pub command_line: String,
    /// Its memory.
    pub memory_mib: u64,
    /// Whether it looks for its devices in ACPI tables, as Linux does.
    pub acpi: bool,
    /// Whether it has a virtio-rng device.
    pub entropy: bool,
    /// Its disks, in order.
    pub disks: Vec<Disk>,
    /// Its network device.
    pub nic: Option<Nic>,
}

/// A virtio-blk device.
#[derive(Debug, Clone)]
pub struct Disk {
    /// A regular file, raw, of whole sectors.
    pub file: PathBuf,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// A virtio-net device.
#[derive(Debug, Clone)]
pub struct Nic {
    /// A tap interface with one queue.
    pub tap: String,
    /// Whether the kernel moves the frames.
    pub vhost: bool,
}

/// The address of [`Nic`]: any that is locally administered.
pub const MAC: &str = "02:00:00:00:00:01";

const KERNEL_OUTBOARD: &str = "kernel.outboard";

fn temporary_directory() -> Result<TempDir, BenchError> {
    tempfile::tempdir().map_err(host("make a temporary directory"))
}

fn hash_tree(content: &Path, outboard: &Path) -> io::Result<BlobHash> {
    let mut options = File::options();
    let outboard = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(outboard)?;
    let built = Builder::new(outboard).build(File::open(content)?)?;
    Ok(built.hash)
}

impl Guest {
    /// A program without an operating system.
    pub fn bare_metal(
        program: &[u8],
        command_line: impl Into<String>,
        memory_mib: u64,
    ) -> Result<Self, BenchError> {
        let directory = temporary_directory()?;
        let kernel = directory.path().join("guest");
        std::fs::write(&kernel, program).map_err(host("write the guest"))?;
        let guest = Self::new(directory, kernel, command_line.into(), memory_mib)?;
        guest
            .write_firecracker_config()
            .map_err(host("write a configuration"))?;
        Ok(guest)
    }

    /// Linux.
    pub fn linux(
        kernel: &Path,
        command_line: impl Into<String>,
        memory_mib: u64,
    ) -> Result<Self, BenchError> {
        let directory = temporary_directory()?;
        let mut guest = Self::new(directory, kernel.into(), command_line.into(), memory_mib)?;
        guest.acpi = true;
        Ok(guest)
    }

    fn new(
        directory: TempDir,
        kernel: PathBuf,
        command_line: String,
        memory_mib: u64,
    ) -> Result<Self, BenchError> {
        let outboard = directory.path().join(KERNEL_OUTBOARD);
        let kernel_hash =
            hash_tree(&kernel, &outboard).map_err(host("make the hash tree of a guest"))?;
        Ok(Self {
            directory,
            kernel,
            kernel_hash,
            command_line,
            memory_mib,
            acpi: false,
            entropy: false,
            disks: Vec::new(),
            nic: None,
        })
    }

    /// The hash tree over the kernel, which an agent has in its store.
    pub(super) fn kernel_outboard(&self) -> PathBuf {
        self.directory.path().join(KERNEL_OUTBOARD)
    }

    /// Firecracker is told by a file, which is there before any clock runs.
    pub(super) fn firecracker_config(&self) -> PathBuf {
        self.directory.path().join("firecracker.json")
    }

    fn write_firecracker_config(&self) -> std::io::Result<()> {
        let config = serde_json::json!({
            "boot-source": {
                "kernel_image_path": self.kernel,
                "boot_args": self.command_line,
            },
            "drives": [],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": self.memory_mib },
        });
        std::fs::write(self.firecracker_config(), config.to_string())
    }
}
