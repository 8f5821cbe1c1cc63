//! The virtual machine monitors and how each is started.

use std::ffi::CString;
use std::fs::File;
use std::io::{PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use jail::{Cgroup, Cgroups, Jail, NewNetwork};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use tempfile::TempDir;
use vmm::spec::{BootSpec, MetricsSpec, SPEC_VERSION, SerialSpec, VmSpec};

use super::MEMORY_MIB;
use super::error::{BenchError, host};
use super::process::Process;

/// What the guest does after its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// It ends the machine.
    PowerOff,
    /// It halts for good.
    Idle,
}

impl Behaviour {
    /// The guest's command line.
    fn command_line(self) -> &'static str {
        match self {
            Self::PowerOff => "off",
            Self::Idle => "idle",
        }
    }
}

/// What monitors are given as files; removed when dropped.
pub struct Files {
    directory: TempDir,
}

impl Files {
    /// Writes the guest, and Firecracker's configurations.
    pub fn create() -> Result<Self, BenchError> {
        let write_failed = "write the guest to a temporary directory";
        let files = Self {
            directory: tempfile::tempdir().map_err(host(write_failed))?,
        };
        std::fs::write(files.guest(), probe_guests::FIRST_INSTRUCTION)
            .map_err(host(write_failed))?;
        for behaviour in [Behaviour::PowerOff, Behaviour::Idle] {
            let config = serde_json::json!({
                "boot-source": {
                    "kernel_image_path": files.guest(),
                    "boot_args": behaviour.command_line(),
                },
                "drives": [],
                "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
            });
            std::fs::write(files.firecracker_config(behaviour), config.to_string())
                .map_err(host(write_failed))?;
        }
        Ok(files)
    }

    fn guest(&self) -> PathBuf {
        self.directory.path().join("guest")
    }

    fn firecracker_config(&self, behaviour: Behaviour) -> PathBuf {
        let name = format!("firecracker-{}.json", behaviour.command_line());
        self.directory.path().join(name)
    }
}

/// A virtual machine monitor.
#[derive(Debug)]
pub struct Monitor {
    kind: Kind,
    path: PathBuf,
    version: String,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Mote,
    Qemu,
    Firecracker,
}

/// A started monitor.
pub struct Started {
    /// The process.
    pub process: Process,
    /// What the guest prints.
    pub console: PipeReader,
}

impl Monitor {
    /// mote's own.
    pub fn mote(path: &Path) -> Result<Self, BenchError> {
        // It has no version of its own: it is this repository's.
        Ok(Self {
            kind: Kind::Mote,
            path: path.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// QEMU with `-M microvm`.
    pub fn qemu(path: &Path) -> Result<Self, BenchError> {
        Self::with_version(Kind::Qemu, path)
    }

    /// Firecracker without its API.
    pub fn firecracker(path: &Path) -> Result<Self, BenchError> {
        Self::with_version(Kind::Firecracker, path)
    }

    fn with_version(kind: Kind, path: &Path) -> Result<Self, BenchError> {
        let output = Command::new(path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| BenchError::Start {
                path: path.to_owned(),
                source,
            })?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(Self {
            kind,
            path: path.to_owned(),
            version: text.lines().next().unwrap_or_default().to_owned(),
        })
    }

    /// How it is called in tables.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Mote => "mote-vmm",
            Kind::Qemu => "QEMU microvm",
            Kind::Firecracker => "Firecracker",
        }
    }

    /// What it says its version is.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Starts it, from nothing.
    pub fn start(&self, files: &Files, behaviour: Behaviour) -> Result<Started, BenchError> {
        match self.kind {
            Kind::Mote => self.start_mote(files, behaviour),
            Kind::Qemu => {
                let mut command = Command::new(&self.path);
                command
                    // What QEMU's documentation of the machine type leaves out for
                    // a fast start.
                    .args([
                        "-M",
                        "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off",
                    ])
                    // Some KVMs report IA32_ARCH_CAPABILITIES and refuse to have
                    // it set, at which QEMU aborts.
                    .args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"])
                    .args(["-smp", "1"])
                    .args(["-m", &MEMORY_MIB.to_string()])
                    .args(["-nodefaults", "-no-user-config", "-display", "none"])
                    // The guest ends by a reset, which is the end then.
                    .args(["-no-reboot", "-serial", "stdio"])
                    .arg("-kernel")
                    .arg(files.guest())
                    .args(["-append", behaviour.command_line()]);
                self.start_with_console_on_stdout(command)
            }
            Kind::Firecracker => {
                let mut command = Command::new(&self.path);
                command
                    .args(["--no-api", "--level", "Error", "--config-file"])
                    .arg(files.firecracker_config(behaviour));
                self.start_with_console_on_stdout(command)
            }
        }
    }

    fn start_with_console_on_stdout(&self, mut command: Command) -> Result<Started, BenchError> {
        let (console, writer) = std::io::pipe().map_err(host("make a pipe"))?;
        command.stdout(writer);
        self.spawn(command, console)
    }

    /// As the agent does it: everything opened here and inherited, in a jail and a
    /// cgroup of its own.
    fn start_mote(&self, files: &Files, behaviour: Behaviour) -> Result<Started, BenchError> {
        let network = NewNetwork::begin().map_err(host("make a network namespace"))?;
        let (console, output) = std::io::pipe().map_err(host("make a pipe"))?;
        let open = |path: &Path, flags| rustix::fs::open(path, flags, Mode::empty());
        let kvm = open(Path::new("/dev/kvm"), OFlags::RDWR | OFlags::CLOEXEC)
            .map_err(|error| BenchError::Kvm(error.into()))?;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let kernel = open(&files.guest(), read).map_err(host("open the guest"))?;
        let null = open(Path::new("/dev/null"), OFlags::RDWR | OFlags::CLOEXEC)
            .map_err(host("open /dev/null"))?;
        let program = open(&self.path, read).map_err(|error| BenchError::Start {
            path: self.path.clone(),
            source: error.into(),
        })?;
        let page = vmm::metrics::create().map_err(host("make a page of metrics"))?;
        let spec = VmSpec {
            version: SPEC_VERSION,
            kvm: kvm.as_raw_fd(),
            vcpus: 1,
            cpu_template: None,
            memory_bytes: MEMORY_MIB << 20,
            boot: BootSpec {
                kernel: kernel.as_raw_fd(),
                initrd: None,
                command_line: behaviour.command_line().to_owned(),
            },
            serial: Some(SerialSpec {
                output: output.as_raw_fd(),
                input: None,
            }),
            disks: Vec::new(),
            entropy: None,
            vsock: None,
            balloon: None,
            generation_id: None,
            control: None,
            nics: Vec::new(),
            consoles: Vec::new(),
            pmem: Vec::new(),
            metrics: Some(MetricsSpec {
                page: page.as_raw_fd(),
                latencies: vmm::metrics::clock_is_cheap(),
            }),
            filesystems: Vec::new(),
            events: None,
        };
        let memfd = rustix::fs::memfd_create("spec", MemfdFlags::CLOEXEC)
            .map_err(host("make a file for the spec"))?;
        let mut spec_file = File::from(memfd);
        let text = serde_json::to_vec(&spec).map_err(host("write the spec"))?;
        spec_file
            .write_all(&text)
            .and_then(|()| std::io::Seek::rewind(&mut spec_file))
            .map_err(host("write the spec"))?;
        let spec_number = spec_file.as_raw_fd();
        let arguments = ["mote-vmm", "--spec-fd", &spec_number.to_string()];
        let (errors, errors_end) = std::io::pipe().map_err(host("make a pipe"))?;
        let name = format!("bench-{}-{spec_number}", std::process::id());
        let limits = vmm::limits::of_cgroup(&spec);
        let cgroup = Cgroups::open()
            .and_then(|cgroups| Cgroup::create(cgroups.as_ref(), &name, &limits))
            .map_err(host("make a cgroup"))?;
        let child = Jail {
            program: program.as_fd(),
            arguments: arguments
                .map(|text| CString::new(text).unwrap_or_default())
                .to_vec(),
            standard: [null.as_fd(), null.as_fd(), errors_end.as_fd()],
            descriptors: vec![
                kvm.as_fd(),
                kernel.as_fd(),
                output.as_fd(),
                page.as_fd(),
                spec_file.as_fd(),
            ],
            limits: vmm::limits::of(&spec, spec_number),
            network: network.as_ref(),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            dies_with_parent: true,
        }
        .spawn()?;
        Ok(Started {
            process: Process::jailed(child, cgroup, errors),
            console,
        })
    }

    fn spawn(&self, mut command: Command, console: PipeReader) -> Result<Started, BenchError> {
        let (errors, errors_end) = std::io::pipe().map_err(host("make a pipe"))?;
        let child = command
            .stdin(Stdio::null())
            .stderr(errors_end)
            .spawn()
            .map_err(|source| BenchError::Start {
                path: self.path.clone(),
                source,
            })?;
        Ok(Started {
            process: Process::plain(child, errors),
            console,
        })
    }
}
