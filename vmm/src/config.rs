//! A valid microVM: what [`crate::spec`] becomes, once, at the edge.

pub mod boot;
pub mod console;
pub mod cpu;
mod descriptor;
pub mod disk;
mod error;
pub mod filesystem;
pub mod limits;
mod metrics;
mod nic;
pub mod pmem;
pub mod serial;
pub mod vsock;

use std::fs::File;
use std::os::fd::OwnedFd;

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;
use rustix::fs::FileType;

use crate::arch::layout;
use crate::arch::x86_64::cpuid::template::Template;
use crate::descriptors::Descriptors;
use crate::devices::generation_id::GENERATION_ID_BYTES;
use crate::devices::virtio::balloon::BalloonFeatures;
use crate::devices::virtio::net::NetOptions;
use crate::metrics::page::Options;
use crate::spec::{Descriptor, SPEC_VERSION, VmSpec};
use boot::BootConfig;
use console::ConsoleConfig;
use descriptor::{non_blocking, readable, seqpacket, writable};
use disk::DiskConfig;
pub use error::ConfigError;
use error::in_range;
use filesystem::FilesystemConfig;
use pmem::PmemConfig;
use serial::SerialConfig;
use vsock::VsockConfig;

/// As many as the APIC ids of the tables here number, and as were tried.
pub const MAX_VCPUS: u32 = 32;
/// Below this the boot structures and a kernel do not fit.
pub const MIN_MEMORY_BYTES: u64 = 2 << 20;
/// A memory slot has less than 2^31 pages (`KVM_MEM_MAX_NR_PAGES`, Linux,
/// `virt/kvm/kvm_main.c`), and all memory above 4 GiB is one.
pub const MAX_MEMORY_BYTES: u64 = 8 << 40;
const PAGE_BYTES: u64 = 4096;

/// One microVM, every value in range, every descriptor owned.
#[derive(Debug)]
pub struct Config {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// What they are like, if not like the host's.
    pub cpu_template: Option<&'static Template>,
    /// What KVM answers to `KVM_GET_SUPPORTED_CPUID`, if the agent has asked.
    pub supported_cpuid: Option<CpuId>,
    /// A multiple of the page size.
    pub memory_bytes: u64,
    /// What runs first.
    pub boot: BootConfig,
    /// What the guest finds.
    pub devices: DevicesConfig,
    /// What is counted where.
    pub metrics: Option<Options>,
    /// Where events go.
    pub events: Option<File>,
}

/// The devices of a microVM.
#[derive(Debug)]
pub struct DevicesConfig {
    /// The serial console.
    pub serial: Option<SerialConfig>,
    /// Disks in order.
    pub disks: Vec<DiskConfig>,
    /// Where random bytes come from.
    pub entropy: Option<File>,
    /// The vsock device.
    pub vsock: Option<VsockConfig>,
    /// The balloon device.
    pub balloon: Option<BalloonFeatures>,
    /// The VM generation id.
    pub generation_id: Option<[u8; GENERATION_ID_BYTES]>,
    /// A `SOCK_SEQPACKET` socket.
    pub control: Option<OwnedFd>,
    /// Network devices in order.
    pub nics: Vec<NetOptions>,
    /// Consoles in order.
    pub consoles: Vec<ConsoleConfig>,
    /// Persistent memory in order.
    pub pmem: Vec<PmemConfig>,
    /// File systems in order.
    pub filesystems: Vec<FilesystemConfig>,
}

impl Config {
    /// Validates `spec` and takes ownership of the descriptors it names.
    pub fn from_spec(spec: VmSpec) -> Result<Self, ConfigError> {
        if spec.version != SPEC_VERSION {
            return Err(ConfigError::Version {
                found: spec.version,
            });
        }
        let fds = &mut Descriptors::default();
        let vcpus = in_range(
            "vcpus",
            spec.vcpus.into(),
            1..=MAX_VCPUS.into(),
            format!("1 to {MAX_VCPUS}"),
        )?;
        let memory_bytes = in_range(
            "memory_bytes",
            spec.memory_bytes,
            MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES,
            format!("{MIN_MEMORY_BYTES} to {MAX_MEMORY_BYTES}"),
        )?;
        if memory_bytes % PAGE_BYTES != 0 {
            return Err(ConfigError::Range {
                field: "memory_bytes".to_owned(),
                found: memory_bytes,
                wanted: format!("a multiple of {PAGE_BYTES}"),
            });
        }
        let devices = spec.disks.len()
            + usize::from(spec.entropy.is_some())
            + usize::from(spec.vsock.is_some())
            + usize::from(spec.balloon.is_some())
            + spec.nics.len()
            + spec.consoles.len()
            + spec.pmem.len()
            + spec.filesystems.len();
        in_range(
            "the number of devices",
            devices as u64,
            ..=layout::MAX_DEVICES as u64,
            format!("at most {}", layout::MAX_DEVICES),
        )?;
        let cpu_template = cpu::template(&spec)?;
        let supported_cpuid = cpu::supported(spec.supported_cpuid.as_deref())?;
        let kvm = fds.take(spec.kvm, "kvm")?;
        Ok(Self {
            vcpus: vcpus as u8,
            cpu_template,
            supported_cpuid,
            memory_bytes,
            boot: boot::boot(spec.boot, fds)?,
            devices: DevicesConfig {
                serial: spec
                    .serial
                    .map(|serial| serial::serial(serial, fds))
                    .transpose()?,
                disks: disk::all(spec.disks, fds)?,
                entropy: spec
                    .entropy
                    .map(|number| entropy(number, fds))
                    .transpose()?,
                vsock: spec
                    .vsock
                    .map(|vsock| vsock::vsock(vsock, fds))
                    .transpose()?,
                balloon: spec.balloon.map(|balloon| BalloonFeatures {
                    deflate_on_oom: balloon.deflate_on_oom,
                    statistics: balloon.statistics,
                    free_page_reporting: balloon.free_page_reporting,
                }),
                generation_id: spec
                    .generation_id
                    .map(|text| generation_id(&text))
                    .transpose()?,
                control: spec
                    .control
                    .map(|number| seqpacket(number, "control", fds))
                    .transpose()?,
                nics: nic::all(spec.nics, vcpus, fds)?,
                consoles: console::all(spec.consoles, fds)?,
                pmem: pmem::all(spec.pmem, fds)?,
                filesystems: filesystem::all(spec.filesystems, fds)?,
            },
            metrics: spec
                .metrics
                .map(|metrics| metrics::metrics(metrics, fds))
                .transpose()?,
            events: spec
                .events
                .map(|number| non_blocking(writable(number, "events", fds)?, "events"))
                .transpose()?,
            // Last: all else can be wrong without it.
            kvm: crate::kvm::vm::open(kvm)?,
        })
    }
}

/// What gives random bytes for as long as it is asked.
fn entropy(number: Descriptor, fds: &mut Descriptors) -> Result<File, ConfigError> {
    let file = readable(number, "entropy", fds)?;
    let kind = rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::CharacterDevice) => non_blocking(file, "entropy"),
        _ => Err(error::kind(
            "entropy",
            "a character device, such as /dev/urandom",
        )),
    }
}

fn generation_id(text: &str) -> Result<[u8; GENERATION_ID_BYTES], ConfigError> {
    let problem = ConfigError::Text {
        field: "generation_id".to_owned(),
        problem: "is not 32 hexadecimal digits",
    };
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == 2 * GENERATION_ID_BYTES);
    let Some(digits) = digits else {
        return Err(problem);
    };
    // Each pair of digits is a byte.
    Ok(std::array::from_fn(|index| {
        (digits[2 * index] << 4 | digits[2 * index + 1]) as u8
    }))
}
