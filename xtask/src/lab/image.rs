//! The lab's initramfs: its init and the modules it needs to reach the
//! machine's file system. modprobe finds all others there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

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
/// This program as it was started, proc_pid_exe(5).
const OWN_PROGRAM: &str = "/proc/self/exe";

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
    // Not by its path: cargo may have built another file there since.
    let init = File::open(OWN_PROGRAM).with_context(|| format!("cannot open {OWN_PROGRAM}"))?;
    let length = loadable_length(&init)
        .with_context(|| format!("cannot read {OWN_PROGRAM}, this program, as an ELF file"))?;
    archive.file_from(INIT, 0o755, length, init)?;
    let modules = ModuleTree::open(&kernel.modules)?.load_order(&MODULES)?;
    for (index, module) in modules.iter().enumerate() {
        let path = format!("{MODULES_DIRECTORY}/{index:02}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.read()?)?;
    }
    let mut file = archive.finish()?.into_inner().context("a file in memory")?;
    file.flush()?;
    Ok(file)
}

/// The length of the part of an ELF file that execve(2) looks at: up to the end
/// of its last segment. What follows, in a debug build most of the file, is for
/// debuggers, and would have to pass through the lab's memory at each start.
fn loadable_length(elf: &File) -> io::Result<u64> {
    const PROGRAM_HEADER_BYTES: usize = 56;
    let mut header = [0; 64];
    elf.read_exact_at(&mut header, 0)?;
    if header[..5] != *b"\x7fELF\x02" {
        return Err(io::Error::other("it is not a 64-bit ELF file"));
    }
    let table = u64_at(&header, 32);
    let count = u16::from_le_bytes([header[56], header[57]]);
    let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER_BYTES];
    elf.read_exact_at(&mut headers, table)?;
    let ends = headers
        .chunks_exact(PROGRAM_HEADER_BYTES)
        .map(|segment| u64_at(segment, 8).saturating_add(u64_at(segment, 32)));
    let table_end = table + headers.len() as u64;
    Ok(ends.fold(table_end, u64::max).min(elf.metadata()?.len()))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_program_runs_without_what_follows_its_segments() {
        let own = std::env::current_exe().unwrap();
        let length = loadable_length(&File::open(&own).unwrap()).unwrap();
        let whole = own.metadata().unwrap().len();
        assert!(length < whole, "tests have debug information");
        let directory = tempfile::tempdir().unwrap();
        // In another process: a test that forks while this one has the copy
        // open for writing would keep it from being executed (ETXTBSY).
        let script = "head -c $1 \"$2\" >short && chmod +x short && ./short --list";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh", &length.to_string()]);
        shell.arg(&own).current_dir(&directory);
        let listed = crate::command::output(&mut shell).unwrap();
        assert!(listed.contains("a_program_runs_without"), "{listed}");
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(loadable_length(&file).is_err());
        file.write_all_at(&[b'#'; 100], 0).unwrap();
        assert!(loadable_length(&file).is_err());
    }
}
