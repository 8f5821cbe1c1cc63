//! A valid microVM: what [`crate::spec`] becomes, once, at the edge.

pub mod console;
mod nic;
pub mod pmem;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;

use crate::arch::layout;
use crate::block::extents::{Extent, ExtentDisk};
use crate::descriptors::{DescriptorError, Descriptors, access};
use crate::devices::generation_id::GENERATION_ID_BYTES;
use crate::devices::virtio::balloon::BalloonFeatures;
use crate::devices::virtio::block::Serial;
use crate::devices::virtio::limiter::{Limits, Rate};
use crate::devices::virtio::net::NetOptions;
use crate::spec::{BootSpec, DiskSpec, LimitsSpec, RateSpec, SPEC_VERSION, SerialSpec, VmSpec};
use console::ConsoleConfig;
use pmem::PmemConfig;

/// As many as the APIC ids of the tables here number, and as were tried.
pub const MAX_VCPUS: u32 = 32;
/// Below this the boot structures and a kernel do not fit.
pub const MIN_MEMORY_BYTES: u64 = 2 << 20;
/// More than any machine has, far less than what overflows an address.
pub const MAX_MEMORY_BYTES: u64 = 16 << 40;
const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// A disk is a list of an image's blobs; images have at most 256 layers.
const MAX_EXTENTS: usize = 4096;
/// Bytes or operations of a limit: more than any device moves.
const MAX_RATE: u64 = 1 << 40;
/// Context ids 0 to 2 are reserved (vsock(7)); 2³² - 1 means "any".
const GUEST_CIDS: std::ops::Range<u64> = 3..u32::MAX as u64;

/// What is wrong with a spec.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Another version of the format.
    #[error("version is {found}, this mote-vmm understands {SPEC_VERSION}")]
    Version {
        /// What the spec says.
        found: u32,
    },
    /// A number outside its range.
    #[error("{field} is {found}, it must be {wanted}")]
    Range {
        /// The field of the spec.
        field: String,
        /// What it holds.
        found: u64,
        /// What it may hold.
        wanted: String,
    },
    /// A descriptor that cannot be used.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// A descriptor of the wrong kind.
    #[error("{field} must be {wanted}")]
    Kind {
        /// The field of the spec.
        field: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// An extent that its file does not hold.
    #[error("{field} ends at byte {end}, its file at {size}")]
    Extent {
        /// The field of the spec.
        field: String,
        /// One past the last byte of the extent.
        end: u64,
        /// The size of the file.
        size: u64,
    },
    /// A descriptor of the right kind that cannot be set up.
    #[error("{field} cannot be set up")]
    Setup {
        /// The field of the spec.
        field: String,
        /// What the system said.
        source: io::Error,
    },
    /// Two values that must differ.
    #[error("{field} is {value}, as {other} is already; each must be given once")]
    Twice {
        /// The field of the spec.
        field: String,
        /// The field that came first.
        other: String,
        /// The value of both.
        value: String,
    },
    /// Two descriptors that must belong together.
    #[error(
        "{field} is a queue of the interface {found}, {other} of {wanted}: they must be of one"
    )]
    Interface {
        /// The field of the spec.
        field: String,
        /// The interface it belongs to.
        found: String,
        /// The field that came first.
        other: String,
        /// The interface that one belongs to.
        wanted: String,
    },
    /// Text that the guest could not be given as it is.
    #[error("{field} {problem}")]
    Text {
        /// The field of the spec.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// One microVM, every value in range, every descriptor owned.
#[derive(Debug)]
pub struct Config {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// A multiple of the page size.
    pub memory_bytes: u64,
    /// What runs first.
    pub boot: BootConfig,
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
    /// Where events go.
    pub events: Option<File>,
}

/// What runs first.
#[derive(Debug)]
pub struct BootConfig {
    /// An ELF file or a bzImage.
    pub kernel: File,
    /// A newc archive.
    pub initrd: Option<File>,
    /// No longer than the guest takes, without zero bytes.
    pub command_line: String,
}

/// The serial console.
#[derive(Debug)]
pub struct SerialConfig {
    /// Open for writing.
    pub output: File,
    /// Open for reading, and something to poll.
    pub input: Option<File>,
}

/// A disk.
#[derive(Debug)]
pub struct DiskConfig {
    /// Its content.
    pub disk: ExtentDisk,
    /// Its identity.
    pub serial: Serial,
    /// How much it may move.
    pub limits: Limits,
}

/// A vsock device.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's context id.
    pub guest_cid: u64,
    /// A `SOCK_SEQPACKET` socket.
    pub channel: OwnedFd,
}

fn in_range(
    field: &str,
    found: u64,
    range: impl std::ops::RangeBounds<u64>,
    wanted: impl Into<String>,
) -> Result<u64, ConfigError> {
    if range.contains(&found) {
        return Ok(found);
    }
    Err(ConfigError::Range {
        field: field.to_owned(),
        found,
        wanted: wanted.into(),
    })
}

fn kind(field: impl Into<String>, wanted: &'static str) -> ConfigError {
    ConfigError::Kind {
        field: field.into(),
        wanted,
    }
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
            + spec.pmem.len();
        in_range(
            "the number of devices",
            devices as u64,
            ..=layout::MAX_DEVICES as u64,
            format!("at most {}", layout::MAX_DEVICES),
        )?;
        Ok(Self {
            kvm: fds.take(spec.kvm, "kvm")?,
            vcpus: vcpus as u8,
            memory_bytes,
            boot: boot(spec.boot, fds)?,
            serial: spec
                .serial
                .map(|serial| self::serial(serial, fds))
                .transpose()?,
            disks: spec
                .disks
                .into_iter()
                .zip(0..)
                .map(|(disk, index)| self::disk(disk, index, fds))
                .collect::<Result<_, _>>()?,
            entropy: spec
                .entropy
                .map(|number| readable(number, "entropy", fds))
                .transpose()?,
            vsock: spec
                .vsock
                .map(|vsock| {
                    let guest_cid = in_range(
                        "vsock.guest_cid",
                        vsock.guest_cid,
                        GUEST_CIDS,
                        format!("{} to {}", GUEST_CIDS.start, GUEST_CIDS.end - 1),
                    )?;
                    let channel = seqpacket(vsock.channel, "vsock.channel", fds)?;
                    Ok::<_, ConfigError>(VsockConfig { guest_cid, channel })
                })
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
            events: spec
                .events
                .map(|number| writable(number, "events", fds))
                .transpose()?,
        })
    }
}

fn readable(number: i32, field: &str, fds: &mut Descriptors) -> Result<File, ConfigError> {
    let file = File::from(fds.take(number, field)?);
    if !access(&file).0 {
        return Err(kind(field, "open for reading"));
    }
    Ok(file)
}

fn writable(number: i32, field: &str, fds: &mut Descriptors) -> Result<File, ConfigError> {
    let file = File::from(fds.take(number, field)?);
    if !access(&file).1 {
        return Err(kind(field, "open for writing"));
    }
    Ok(file)
}

fn seqpacket(number: i32, field: &str, fds: &mut Descriptors) -> Result<OwnedFd, ConfigError> {
    let socket = fds.take(number, field)?;
    let seqpacket = rustix::net::sockopt::socket_type(&socket)
        .is_ok_and(|kind| kind == rustix::net::SocketType::SEQPACKET);
    if !seqpacket {
        return Err(kind(field, "a SOCK_SEQPACKET socket"));
    }
    Ok(socket)
}

fn generation_id(text: &str) -> Result<[u8; GENERATION_ID_BYTES], ConfigError> {
    let problem = ConfigError::Text {
        field: "generation_id",
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

/// The size of a regular file or block device; `None` for anything else.
fn stored_size(file: &File) -> Option<u64> {
    let stat = rustix::fs::fstat(file).ok()?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).ok(),
        FileType::BlockDevice => {
            let end = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).ok()?;
            Some(end)
        }
        _ => None,
    }
}

fn boot(spec: BootSpec, fds: &mut Descriptors) -> Result<BootConfig, ConfigError> {
    let regular = |number, field: &str, fds: &mut Descriptors| {
        let file = readable(number, field, fds)?;
        stored_size(&file).ok_or_else(|| kind(field, "a regular file"))?;
        Ok::<_, ConfigError>(file)
    };
    let field = "boot.command_line";
    if spec.command_line.len() >= layout::COMMAND_LINE_MAX_BYTES {
        return Err(ConfigError::Text {
            field,
            problem: "is longer than the 2047 bytes that Linux takes on x86",
        });
    }
    if spec.command_line.contains('\0') {
        return Err(ConfigError::Text {
            field,
            problem: "holds a zero byte",
        });
    }
    Ok(BootConfig {
        kernel: regular(spec.kernel, "boot.kernel", fds)?,
        initrd: spec
            .initrd
            .map(|number| regular(number, "boot.initrd", fds))
            .transpose()?,
        command_line: spec.command_line,
    })
}

fn serial(spec: SerialSpec, fds: &mut Descriptors) -> Result<SerialConfig, ConfigError> {
    let output = writable(spec.output, "serial.output", fds)?;
    let input = spec
        .input
        .map(|number| {
            let input = readable(number, "serial.input", fds)?;
            match stored_size(&input) {
                None => Ok(input),
                Some(_) => Err(kind("serial.input", "a pipe, a socket or a terminal")),
            }
        })
        .transpose()?;
    Ok(SerialConfig { output, input })
}

fn disk(spec: DiskSpec, index: usize, fds: &mut Descriptors) -> Result<DiskConfig, ConfigError> {
    let field = format!("disks[{index}]");
    in_range(
        &format!("the number of extents of {field}"),
        spec.extents.len() as u64,
        1..=MAX_EXTENTS as u64,
        format!("1 to {MAX_EXTENTS}"),
    )?;
    let mut extents = Vec::with_capacity(spec.extents.len());
    for (extent, number) in spec.extents.into_iter().zip(0..) {
        let field = format!("{field}.extents[{number}]");
        let file: Arc<File> = fds.share(extent.file, &format!("{field}.file"))?;
        let (may_read, may_write) = access(&file);
        if !may_read || !(may_write || spec.read_only) {
            return Err(kind(field, "open for what the disk is used for"));
        }
        let length = extent.length_bytes;
        in_range(
            &format!("{field}.length_bytes"),
            length,
            SECTOR_BYTES..,
            "512 or more",
        )?;
        if length % SECTOR_BYTES != 0 {
            return Err(ConfigError::Range {
                field: format!("{field}.length_bytes"),
                found: length,
                wanted: "a multiple of 512".to_owned(),
            });
        }
        let size = stored_size(&file)
            .ok_or_else(|| kind(field.clone(), "a regular file or a block device"))?;
        let end = extent.offset_bytes.saturating_add(length);
        if end > size {
            return Err(ConfigError::Extent { field, end, size });
        }
        extents.push(Extent {
            file,
            offset_bytes: extent.offset_bytes,
            length_bytes: length,
        });
    }
    let too_large = || kind(field.clone(), "smaller than 8 EiB");
    Ok(DiskConfig {
        disk: ExtentDisk::new(extents, spec.read_only).ok_or_else(too_large)?,
        serial: disk_serial(spec.serial.as_deref())?,
        limits: limits(spec.limits, &format!("{field}.limits"))?,
    })
}

/// The limits of a device; `field` is where the spec has them.
/// Limits within their ranges; `field` is where they stand, for the error.
pub(crate) fn limits(spec: Option<LimitsSpec>, field: &str) -> Result<Limits, ConfigError> {
    let Some(spec) = spec else {
        return Ok(Limits::default());
    };
    let rate = |rate: Option<RateSpec>, name: &str| {
        let number = |number, part| {
            let field = format!("{field}.{name}.{part}");
            in_range(&field, number, 1..=MAX_RATE, format!("1 to {MAX_RATE}"))
        };
        rate.map(|rate| {
            Ok::<_, ConfigError>(Rate {
                per_second: number(rate.per_second, "per_second")?,
                burst: number(rate.burst, "burst")?,
            })
        })
        .transpose()
    };
    Ok(Limits {
        bandwidth: rate(spec.bandwidth, "bandwidth")?,
        operations: rate(spec.operations, "operations")?,
    })
}

fn disk_serial(text: Option<&str>) -> Result<Serial, ConfigError> {
    let mut serial = Serial::default();
    let bytes = text.unwrap_or_default().as_bytes();
    if bytes.len() > serial.len() || !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(ConfigError::Text {
            field: "serial of a disk",
            problem: "is not up to 20 visible ASCII characters",
        });
    }
    serial[..bytes.len()].copy_from_slice(bytes);
    Ok(serial)
}
