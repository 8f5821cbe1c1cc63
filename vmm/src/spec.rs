//! The wire form of a microVM: what the agent writes and `mote-vmm` reads.
//!
//! A [`VmSpec`] travels as one JSON document over the descriptor named on
//! `mote-vmm`'s command line. Every other descriptor is inherited too and named
//! here by number: the VMM opens nothing. Unknown fields are refused, so that a
//! newer agent never believes an older VMM obeyed it. Only `config` reads these
//! types; devices never see them.

use outboard::BlobHash;
use serde::{Deserialize, Serialize};

/// The version of this format. A VMM refuses any other.
pub const SPEC_VERSION: u32 = 2;

/// A number in the descriptor table that `mote-vmm` inherits.
pub type Descriptor = i32;

/// One microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Always [`SPEC_VERSION`].
    pub version: u32,
    /// `/dev/kvm`, opened read-write.
    pub kvm: Descriptor,
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u32,
    /// What the CPUs are like: the name of a template, such as `x86-64-v3.1`, which gives
    /// the same features on every host (`docs/cpu-templates.md`). Omitted: like this
    /// host's, with all it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// What KVM answers to `KVM_GET_SUPPORTED_CPUID` on this host
    /// ([`crate::host_cpuid::ask`]), at most 253 entries. A template is made of it, and
    /// what is each vCPU's own is put into it, before the guest reads it. Omitted: the VMM
    /// asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported_cpuid: Option<Vec<CpuidSpec>>,
    /// Guest memory in bytes: a multiple of 4096, at least 2 MiB. `mote` gives Linux 64 MiB or more.
    pub memory_bytes: u64,
    /// What runs first.
    pub boot: BootSpec,
    /// The first serial port (COM1, port 0x3f8, GSI 4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialSpec>,
    /// virtio-blk devices, in the order the guest sees them (`vda`, `vdb`, …).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// A virtio-rng device that reads from this descriptor (`/dev/urandom`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Descriptor>,
    /// A virtio-vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,
    /// A virtio-balloon device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonSpec>,
    /// Tells the guest which of its copies it is (VM generation id): 16 bytes as
    /// 32 hexadecimal digits. Omitted: the guest has no such device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_id: Option<String>,
    /// A connected Unix `SOCK_SEQPACKET` socket over which the agent controls the
    /// running microVM; see [`crate::control`]. With it comes the power button.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Descriptor>,
    /// virtio-net devices, in the order the guest sees them (`eth0`, `eth1`, …).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicSpec>,
    /// virtio-console devices, in the order the guest sees them (`hvc0`, `hvc1`, …).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consoles: Vec<ConsoleSpec>,
    /// virtio-pmem devices, in the order the guest sees them (`pmem0`, `pmem1`, …).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<PmemSpec>,
    /// virtio-fs devices. Where there is one, guest memory is a file that backends map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filesystems: Vec<FilesystemSpec>,
    /// Counters and latencies for the agent to read. Omitted: nothing is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsSpec>,
    /// Where [`crate::event::Event`]s go, one JSON document a line. Made non-blocking,
    /// for everyone who shares it (`O_NONBLOCK`): events that a reader leaves no room
    /// for are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Descriptor>,
}

/// One answer of CPUID (`struct kvm_cpuid_entry2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidSpec {
    /// EAX before it.
    pub leaf: u32,
    /// ECX before it, where that matters (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subleaf: Option<u32>,
    /// EAX after it.
    pub eax: u32,
    /// EBX after it.
    pub ebx: u32,
    /// ECX after it.
    pub ecx: u32,
    /// EDX after it.
    pub edx: u32,
}

/// What the vCPUs run first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSpec {
    /// An ELF `vmlinux` or a `bzImage`, told apart by their magic numbers.
    pub kernel: BootBlobSpec,
    /// A newc archive, compressed or not, handed to the kernel as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<BootBlobSpec>,
    /// The kernel command line, at most 2047 bytes.
    #[serde(default)]
    pub command_line: String,
}

/// A blob that is loaded into guest memory; what of it is loaded is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootBlobSpec {
    /// Its BLAKE3 hash: `blake3:` and 64 hexadecimal digits.
    pub hash: BlobHash,
    /// A regular file with all of it, and nothing else.
    pub file: Descriptor,
    /// A regular file with its hash tree, as crate `outboard` describes it.
    pub outboard: Descriptor,
}

/// The serial console. Its descriptors are made non-blocking, for everyone who shares
/// them (`O_NONBLOCK`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialSpec {
    /// Receives what the guest prints. May be a pipe, a file or a terminal. What a slow
    /// reader does not take is lost: no vCPU waits for it.
    pub output: Descriptor,
    /// Bytes for the guest to read. Omitted: the guest reads nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Descriptor>,
}

/// A virtio-blk disk: extents in order, one after another, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Refuse writes and tell the guest so (`VIRTIO_BLK_F_RO`).
    pub read_only: bool,
    /// The pieces the disk is made of. Their lengths add up to its size.
    pub extents: Vec<ExtentSpec>,
    /// A connected Unix `SOCK_SEQPACKET` socket over which the agent is asked for what is
    /// missing of partial blobs; see [`crate::fetch`]. There if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Descriptor>,
    /// What the guest reads as the disk's identity, at most 20 bytes of ASCII.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How much it may move. Omitted: as much as the host can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
}

/// Limits of a disk, or of one direction of a NIC; each omitted one is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    /// Bytes moved: in both directions of a disk together, or of Ethernet frames
    /// without their check sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<RateSpec>,
    /// Requests of any kind, or frames. A packet that is segmented after it has left
    /// the guest, or was put together before it came there, is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<RateSpec>,
}

/// A token bucket: what is not used is saved up to `burst`. A request larger than
/// `burst` passes when all of that is saved up, and those after it wait longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSpec {
    /// In the long run: 1 to 2⁴⁰.
    pub per_second: u64,
    /// At once, after a rest: 1 to 2⁴⁰.
    pub burst: u64,
}

/// A range of a file that stands at the next free place of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtentSpec {
    /// A regular file or block device. Several extents may share one.
    pub file: Descriptor,
    /// Where in the file the extent starts, in bytes.
    pub offset_bytes: u64,
    /// How long it is, in bytes: a multiple of 512, never 0.
    pub length_bytes: u64,
    /// What the extent is, so that what the guest reads of it is verified: all of a blob,
    /// from the first byte of its file to the last. Of a disk all extents are, or none,
    /// and the disk is read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobSpec>,
}

/// A blob, and how to verify it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobSpec {
    /// Its BLAKE3 hash: `blake3:` and 64 hexadecimal digits.
    pub hash: BlobHash,
    /// A regular file with its hash tree, as crate `outboard` describes it.
    pub outboard: Descriptor,
    /// A regular file with the values of its blocks, as that crate describes them; none if
    /// the guest's reads are to be verified by whole groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Descriptor>,
    /// Parts of the blob may not be in its file yet: the disk's `source` is asked for them
    /// when they are needed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context id, 3 or more (0 to 2 are reserved).
    pub guest_cid: u64,
    /// A connected Unix `SOCK_SEQPACKET` socket over which the agent and the
    /// VMM hand each other the host ends of connections; see
    /// [`crate::vsock_channel`].
    pub channel: Descriptor,
}

/// A virtio-balloon device, empty at the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonSpec {
    /// Let the guest take pages back before it runs out of memory
    /// (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// Let the guest tell how it uses its memory (`VIRTIO_BALLOON_F_STATS_VQ`).
    #[serde(default)]
    pub statistics: bool,
    /// Give pages that the guest reports as free back to the host
    /// (`VIRTIO_BALLOON_F_PAGE_REPORTING`).
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// A virtio-net device on a tap interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Its address, such as `02:00:00:00:00:01`: of one machine (unicast), and of no
    /// other NIC here.
    pub mac: String,
    /// The queues of one tap interface, `/dev/net/tun` after `TUNSETIFF` with
    /// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and `IFF_MULTI_QUEUE` where there are
    /// several: at most as many as vCPUs, and at most 8.
    pub taps: Vec<Descriptor>,
    /// The largest packet in bytes that the guest is told to send, 68 or more.
    /// Omitted: the guest keeps to its own default, 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// `/dev/vhost-net`, opened read-write once for each of `taps`: the kernel then
    /// moves the frames. Omitted: the VMM does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vhost: Vec<Descriptor>,
    /// How much it may move. Not with `vhost`: the kernel keeps no limits. Omitted: as
    /// much as the host can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NicLimitsSpec>,
}

/// Limits of a NIC in each direction; each omitted one is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicLimitsSpec {
    /// Of what the guest sends. Frames over the limit wait in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmit: Option<LimitsSpec>,
    /// Of what the guest receives. Frames over the limit wait in the tap, whose queue
    /// drops those for which it has no room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<LimitsSpec>,
}

/// A virtio-console device: a terminal. Its descriptors are made non-blocking, for
/// everyone who shares them (`O_NONBLOCK`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// Bytes for the guest to read: a pipe, a socket or a terminal. Omitted: the guest
    /// reads nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Descriptor>,
    /// Receives what the guest prints. What a slow reader does not take is lost past
    /// 64 KiB.
    pub output: Descriptor,
    /// The width of the terminal in characters, 1 or more.
    pub columns: u16,
    /// Its height in characters, 1 or more.
    pub rows: u16,
}

/// A virtio-pmem device: a file that the guest has in its physical memory, above all
/// other memory there, at a multiple of 2 MiB. MicroVMs with the same file share the
/// host's pages of it. The guest cannot have other devices read or write it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemSpec {
    /// A regular file. Nobody may shrink it: a guest that touches what is gone ends. A
    /// file in memory (memfd_create(2), tmpfs) must be sealed against that
    /// (`F_SEAL_SHRINK`).
    pub file: Descriptor,
    /// The size of the file, 1 to 2⁴⁰. To the next multiple of 2 MiB the guest reads
    /// zeroes; a file it may write must have such a size.
    pub length_bytes: u64,
    /// What the guest writes is lost. Else it is in the file at once, and survives a
    /// power loss after a flush.
    pub read_only: bool,
}

/// Memory in which the VMM counts what it does; see [`crate::metrics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSpec {
    /// What [`crate::metrics::create`] makes, open for reading and writing.
    pub page: Descriptor,
    /// Measure times as well, which takes two looks at the clock for each exit and each
    /// request: see [`crate::metrics::clock_is_cheap`].
    pub latencies: bool,
}

/// A virtio-fs device: files of the host's, served by a vhost-user backend such as
/// virtiofsd. The backend reads and writes all of guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesystemSpec {
    /// The name that the guest mounts it by (`mount -t virtiofs TAG DIRECTORY`): 1 to 36
    /// bytes of UTF-8, none of them zero, and no other file system's here.
    pub tag: String,
    /// A Unix `SOCK_STREAM` socket, connected to the backend. It must know `REPLY_ACK`.
    pub socket: Descriptor,
}
