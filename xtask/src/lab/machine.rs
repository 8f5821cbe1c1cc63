//! The QEMU machine and the virtiofsd that shares the file system with it.
//!
//! Nothing of a lab has a name outside its processes: sockets are connected
//! before they are handed over, files are unlinked or in memory. So labs do not
//! meet, and there is nothing to clean up, however they end.

use std::fs::File;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use lab_init::protocol::{
    CONTROL_PORT, ROOT_TAG, SCRATCH_SERIAL, STDERR_PORT, STDIN_PORT, STDOUT_PORT,
};

use super::image;
use super::process::{Tied, TiedCommand};
use super::size::Size;
use super::virtiofsd;
use crate::debian_kernel::DebianKernel;
use crate::packages;

/// All that TCG emulates, less what it does not do well; see `docs/lab.md`.
///
/// - ERMS, FSRM: it moves one byte a step for `rep movsb`. Without them kernels and
///   C libraries copy by larger words, and most commands take half the time.
/// - XSAVE: it does not intercept a nested guest's XSETBV. KVM would run the guest
///   with an XCR0 not its own, and task switches would lose vector registers.
/// - CMPXCHG16B: it stops all other processors for each. With it, one nested guest
///   in ten to fifty crashed or hung.
/// - SSSE3, SSE4.1, SSE4.2: it calls a function for each shuffle and blend, so that BLAKE3 and
///   the C library's copies, which use them where they are, are faster without: 100 instead of
///   64 MiB/s, and 2100 instead of 1550. All three, as programs take one for a sign of another.
/// - LA57: a fifth level of page tables is one more to walk, for a guest at each
///   level of its own.
const PROCESSOR: &str = "max,-erms,-fsrm,-xsave,-cx16,-ssse3,-sse4.1,-sse4.2,-la57";

/// How much QEMU's translations may take, at most; it takes no more than 2 GiB.
///
/// When they are full, QEMU stops all processors and throws them away, which is when
/// nested guests crash; see `docs/lab.md`. A guest leaves 60 MiB of them, so 2 GiB is
/// 30 guests.
const MAX_TRANSLATIONS: u64 = 2 << 30;

/// What the lab is made of.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// Its memory.
    pub memory: Size,
    /// How many processors it has.
    pub cpus: u32,
    /// The size of its scratch disk, if it has one.
    pub scratch: Option<Size>,
    /// Whether its console is shown.
    pub verbose: bool,
}

impl Default for MachineOptions {
    /// Half of this machine's memory, at most 8 GiB, and its processors, 2 to 4:
    /// QEMU emulates each on a thread of its own.
    fn default() -> Self {
        let whole_mebibytes = (memory_of_this_machine() / 2).min(8 << 30) & !((1 << 20) - 1);
        let cpus = std::thread::available_parallelism().map_or(2, |count| count.get() as u32);
        Self {
            memory: Size::from_bytes(whole_mebibytes),
            cpus: cpus.clamp(2, 4),
            scratch: None,
            verbose: false,
        }
    }
}

/// In bytes.
fn memory_of_this_machine() -> u64 {
    let total = rustix::system::sysinfo();
    total.totalram as u64 * u64::from(total.mem_unit)
}

/// A lab that has been switched on. Dropping it switches it off.
pub struct Machine {
    /// The far ends of its virtio serial ports.
    pub ports: Ports,
    /// The far end of its serial console.
    pub console: UnixStream,
    /// QEMU. Before virtiofsd, which ends when QEMU does.
    pub qemu: Tied,
    /// The server of its file system.
    pub virtiofsd: Tied,
    /// Whether its console is shown.
    pub verbose: bool,
}

/// The far ends of the virtio serial ports.
pub struct Ports {
    pub control: UnixStream,
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

impl Machine {
    /// Switches a lab on. It must be called from a thread that outlives the
    /// lab; see [`Tied`].
    pub fn start(options: &MachineOptions, kernel: &DebianKernel, initramfs: File) -> Result<Self> {
        let (virtiofsd, virtiofs) = virtiofsd::start()?;
        let mut qemu = TiedCommand::new("qemu-system-x86_64");
        machine_arguments(&mut qemu, options, kernel, initramfs);
        file_system_arguments(&mut qemu, virtiofs);
        qemu.args(["-device", "virtio-serial-pci,max_ports=8"]);
        let ports = Ports {
            control: serial_port(&mut qemu, "control", CONTROL_PORT)?,
            stdin: serial_port(&mut qemu, "stdin", STDIN_PORT)?,
            stdout: serial_port(&mut qemu, "stdout", STDOUT_PORT)?,
            stderr: serial_port(&mut qemu, "stderr", STDERR_PORT)?,
        };
        let console = socket_chardev(&mut qemu, "console")?;
        qemu.args(["-serial", "chardev:console"]);
        if let Some(size) = options.scratch {
            scratch_disk(&mut qemu, size)?;
        }
        Ok(Self {
            ports,
            console,
            qemu: qemu.start()?,
            virtiofsd,
            verbose: options.verbose,
        })
    }
}

fn machine_arguments(
    qemu: &mut TiedCommand,
    options: &MachineOptions,
    kernel: &DebianKernel,
    initramfs: File,
) {
    let memory = options.memory.bytes() >> 20;
    let translations = MAX_TRANSLATIONS.min(memory_of_this_machine() / 4) >> 20;
    let initramfs = qemu.inherit(initramfs);
    // Not the machine type microvm: under TCG its guests hang now and then
    // while they calibrate the TSC. What q35 brings and nobody uses is left out.
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ])
    .args([
        "-machine",
        "q35,memory-backend=memory,sata=off,smbus=off,usb=off,vmport=off",
    ])
    .args([
        "-accel",
        &format!("tcg,thread=multi,tb-size={translations}"),
    ])
    .args(["-cpu", PROCESSOR])
    .args(["-smp", &options.cpus.to_string()])
    .args(["-m", &format!("{memory}M")])
    // Shared: virtiofsd reads requests from it and writes contents to it.
    .args([
        "-object",
        &format!("memory-backend-memfd,id=memory,size={memory}M,share=on"),
    ])
    .arg("-kernel")
    .arg(&kernel.image)
    .args(["-initrd", &format!("/proc/self/fd/{initramfs}")])
    .args(["-append", &kernel_command_line()]);
}

fn kernel_command_line() -> String {
    [
        "console=ttyS0",
        // A kernel that panics ends QEMU, which runs with -no-reboot.
        "panic=-1",
        // TCG's processors read one counter. The kernel cannot know that, and
        // would take the HPET for its clock and for KVM's guests: many exits
        // for each look at the time.
        "tsc=reliable",
        // On a busy machine QEMU's timer interrupts come too late for the check
        // that they come at all, and the kernel would panic.
        "no_timer_check",
        // They cost time and protect nobody here; Debian's kernel clears every page
        // and object that it allocates.
        "mitigations=off",
        "init_on_alloc=0",
        "hardened_usercopy=off",
        "randomize_kstack_offset=off",
        // The kernel patches its code while it starts, and QEMU before 8.1 may
        // keep what another processor translates meanwhile: the lab's init brings
        // the others up once that is over. `noreplace-smp`: until then the kernel
        // would take itself for one that never has a second processor.
        "maxcpus=1",
        "noreplace-smp",
        &format!("rdinit={}", image::INIT),
    ]
    .join(" ")
}

fn file_system_arguments(qemu: &mut TiedCommand, virtiofs: UnixStream) {
    let socket = qemu.inherit(virtiofs);
    qemu.args(["-chardev", &format!("socket,id=files,fd={socket}")])
        .args([
            "-device",
            &format!("vhost-user-fs-pci,chardev=files,tag={ROOT_TAG}"),
        ]);
}

/// Adds a serial port and returns its far end.
fn serial_port(qemu: &mut TiedCommand, id: &str, name: &str) -> Result<UnixStream> {
    let socket = socket_chardev(qemu, id)?;
    qemu.args([
        "-device",
        &format!("virtserialport,chardev={id},name={name}"),
    ]);
    Ok(socket)
}

/// Adds a character device and returns its far end.
fn socket_chardev(qemu: &mut TiedCommand, id: &str) -> Result<UnixStream> {
    let (ours, its) = UnixStream::pair().context("cannot make a socket pair")?;
    let descriptor = qemu.inherit(its);
    qemu.args(["-chardev", &format!("socket,id={id},fd={descriptor}")]);
    Ok(ours)
}

/// Adds an empty ext4 disk in a sparse file without a name.
fn scratch_disk(qemu: &mut TiedCommand, size: Size) -> Result<()> {
    let mkfs = packages::find_program("mkfs.ext4").context("mkfs.ext4 is missing")?;
    let file = tempfile::tempfile().context("cannot make the scratch disk's file")?;
    file.set_len(size.bytes())
        .context("cannot size the scratch disk's file")?;
    let inherited = file.try_clone().context("the scratch disk's file")?;
    let mut make = TiedCommand::new(&mkfs);
    let descriptor = make.inherit(inherited);
    make.args([
        "-q",
        "-F",
        "-m",
        "0",
        "-O",
        "^has_journal",
        "-E",
        "lazy_itable_init=1",
    ])
    .arg(format!("/proc/self/fd/{descriptor}"));
    make.run()
        .with_context(|| format!("cannot make a scratch disk of {size}"))?;
    let descriptor = qemu.inherit(file);
    let drive = "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap";
    qemu.args([
        "-drive",
        &format!("{drive},file=/proc/self/fd/{descriptor}"),
    ])
    .args([
        "-device",
        &format!("virtio-blk-pci,drive=scratch,serial={SCRATCH_SERIAL}"),
    ]);
    Ok(())
}
