//! `mote-vmm`, started as the agent does it: everything is opened here and inherited,
//! in a jail and a cgroup of its own.

use std::ffi::CString;
use std::fs::File;
use std::io::{PipeReader, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use hostagent::network;
use jail::{Cgroup, Cgroups, Jail, NewNamespaces};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use vmm::host_cpuid;
use vmm::spec::{
    BootBlobSpec, BootSpec, CpuidSpec, Descriptor, DiskSpec, ExtentSpec, MetricsSpec, NicSpec,
    SPEC_VERSION, SerialSpec, VmSpec,
};

use super::guest::{Disk, Guest, MAC, Nic};
use super::process::Process;
use crate::error::{BenchError, host};

/// Cgroups are told apart by numbers: descriptors are soon used again.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// What the program is given, open. The order is that of descriptors, nothing else.
#[derive(Default)]
struct Passed(Vec<OwnedFd>);

impl Passed {
    fn pass(&mut self, descriptor: OwnedFd) -> Descriptor {
        let number = descriptor.as_raw_fd();
        self.0.push(descriptor);
        number
    }

    fn open(
        &mut self,
        path: &Path,
        flags: OFlags,
        what: &'static str,
    ) -> Result<Descriptor, BenchError> {
        let opened = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        Ok(self.pass(opened.map_err(host(what))?))
    }

    fn disk(&mut self, disk: &Disk) -> Result<DiskSpec, BenchError> {
        let flags = match disk.read_only {
            true => OFlags::RDONLY,
            false => OFlags::RDWR,
        };
        let file = self.open(&disk.file, flags, "open a disk")?;
        let metadata = std::fs::metadata(&disk.file).map_err(host("look at a disk"))?;
        Ok(DiskSpec {
            read_only: disk.read_only,
            source: None,
            extents: vec![ExtentSpec {
                file,
                offset_bytes: 0,
                length_bytes: metadata.len(),
                blob: None,
            }],
            serial: None,
            limits: None,
        })
    }

    fn nic(&mut self, nic: &Nic) -> Result<NicSpec, BenchError> {
        let taps = network::open_tap(&nic.tap, 1).map_err(other);
        let vhost = network::open_vhost(usize::from(nic.vhost)).map_err(other);
        let mut pass = |opened: Vec<OwnedFd>| opened.into_iter().map(|fd| self.pass(fd)).collect();
        Ok(NicSpec {
            mac: MAC.to_owned(),
            taps: pass(taps.map_err(host("use a tap interface"))?),
            mtu: None,
            limits: None,
            vhost: pass(vhost.map_err(host("use vhost-net"))?),
        })
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}

/// What an agent has ready before it starts a VMM: `mote run` has it before it looks for
/// the image.
#[derive(Debug, Default)]
pub(super) struct Ready {
    namespaces: Option<NewNamespaces>,
    cgroups: Option<Cgroups>,
    supported_cpuid: Vec<CpuidSpec>,
}

pub(super) fn prepare() -> Result<Ready, BenchError> {
    let what = "make namespaces";
    let namespaces = NewNamespaces::begin().map_err(host(what))?;
    if let Some(namespaces) = &namespaces {
        namespaces.finish().map_err(host(what))?;
    }
    let cgroups = Cgroups::open().map_err(host("find the hierarchy of cgroups"))?;
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let supported_cpuid = host_cpuid::ask(kvm.map_err(BenchError::Kvm)?.as_fd()).map_err(other);
    Ok(Ready {
        namespaces,
        cgroups,
        supported_cpuid: supported_cpuid.map_err(host("ask KVM for what CPUID may say"))?,
    })
}

/// Starts the VMM at `path`, and returns what the guest prints.
pub(super) fn start(
    path: &Path,
    guest: &Guest,
    Ready {
        namespaces,
        cgroups,
        supported_cpuid,
    }: Ready,
) -> Result<(Process, PipeReader), BenchError> {
    let (console, output) = std::io::pipe().map_err(host("make a pipe"))?;
    let mut passed = Passed::default();
    let kvm = rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| BenchError::Kvm(error.into()))?;
    let kvm = passed.pass(kvm);
    let outboard = guest.kernel_outboard();
    let kernel = BootBlobSpec {
        hash: guest.kernel_hash,
        file: passed.open(&guest.kernel, OFlags::RDONLY, "open the guest")?,
        outboard: passed.open(&outboard, OFlags::RDONLY, "open the guest's hash tree")?,
    };
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(host("open /dev/null"))?;
    let program = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let program = program.map_err(|error| BenchError::Start {
        path: path.to_owned(),
        source: error.into(),
    })?;
    let random = Path::new("/dev/urandom");
    let entropy = match guest.entropy {
        true => Some(passed.open(random, OFlags::RDONLY, "open /dev/urandom")?),
        false => None,
    };
    let disks = guest.disks.iter().map(|disk| passed.disk(disk));
    let disks = disks.collect::<Result<_, _>>()?;
    let nics = guest.nic.iter().map(|nic| passed.nic(nic));
    let nics = nics.collect::<Result<_, _>>()?;
    let page = vmm::metrics::create().map_err(host("make a page of metrics"))?;
    let spec = VmSpec {
        version: SPEC_VERSION,
        kvm,
        vcpus: 1,
        cpu_template: None,
        supported_cpuid: Some(supported_cpuid),
        memory_bytes: guest.memory_mib << 20,
        boot: BootSpec {
            kernel,
            initrd: None,
            command_line: guest.command_line.clone(),
        },
        serial: Some(SerialSpec {
            output: passed.pass(output.into()),
            input: None,
        }),
        disks,
        entropy,
        vsock: None,
        balloon: None,
        generation_id: None,
        control: None,
        nics,
        consoles: Vec::new(),
        pmem: Vec::new(),
        filesystems: Vec::new(),
        metrics: Some(MetricsSpec {
            page: passed.pass(page.into()),
            latencies: vmm::metrics::clock_is_cheap(),
        }),
        events: None,
    };
    let memfd = rustix::fs::memfd_create("spec", MemfdFlags::CLOEXEC)
        .map_err(host("make a file for the spec"))?;
    let mut spec_file = File::from(memfd);
    let text = serde_json::to_vec(&spec).map_err(host("write the spec"))?;
    spec_file
        .write_all(&text)
        .and_then(|()| spec_file.rewind())
        .map_err(host("write the spec"))?;
    let spec_number = passed.pass(spec_file.into());
    let arguments = ["mote-vmm", "--spec-fd", &spec_number.to_string()];
    let (errors, errors_end) = std::io::pipe().map_err(host("make a pipe"))?;
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    let name = format!("bench-{}-{number}", std::process::id());
    let cgroup = Cgroup::create(cgroups.as_ref(), &name, &vmm::limits::of_cgroup(&spec))
        .map_err(host("make a cgroup"))?;
    let child = Jail {
        program: program.as_fd(),
        arguments: arguments
            .map(|text| CString::new(text).unwrap_or_default())
            .to_vec(),
        standard: [null.as_fd(), null.as_fd(), errors_end.as_fd()],
        descriptors: passed.0.iter().map(AsFd::as_fd).collect(),
        limits: vmm::limits::of(&spec, spec_number),
        namespaces,
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        dies_with_parent: true,
    }
    .spawn()?;
    Ok((Process::jailed(child, cgroup, errors), console))
}
