//! The lab's initramfs: its init and the modules it needs to reach the
//! machine's file system. modprobe finds all others there.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};
use initramfs::{Archive, DeviceKind, ModuleTree};
use lab_init::protocol::MODULES_DIRECTORY;

use crate::debian_kernel::DebianKernel;

/// What must be there before the root is, and KVM, which nothing would load.
const MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_console",
    "virtiofs",
    "overlay",
    "virtio_blk",
    "kvm_amd",
];

/// What the kernel is told to run: this very program, which sees by its name
/// what it is there for. One build, so the two ends of the protocol agree.
pub const INIT: &str = "/lab-init";

/// Builds the initramfs in memory.
pub fn build(kernel: &DebianKernel) -> Result<File> {
    let memory = rustix::fs::memfd_create("lab-initramfs", rustix::fs::MemfdFlags::CLOEXEC)
        .context("cannot make a file in memory")?;
    let mut archive = Archive::new(std::io::BufWriter::new(File::from(memory)));
    for directory in ["/dev", "/proc", "/sys", "/lower", "/writable", "/root"] {
        archive.directory(directory, 0o755)?;
    }
    // The kernel opens it for init before init mounts anything.
    archive.device("/dev/console", 0o600, DeviceKind::Character(5, 1))?;
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let init = File::open(&program).with_context(|| program.display().to_string())?;
    archive.file_from(INIT, 0o755, init.metadata()?.len(), init)?;
    let modules = ModuleTree::open(&kernel.modules)?.load_order(&MODULES)?;
    for (index, module) in modules.iter().enumerate() {
        let path = format!("{MODULES_DIRECTORY}/{index:02}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.read()?)?;
    }
    let mut file = archive.finish()?.into_inner().context("a file in memory")?;
    file.flush()?;
    Ok(file)
}
