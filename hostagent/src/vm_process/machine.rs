//! What a microVM is made of, with its files open.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use jail::{IoLimit, NewNamespaces};
use outboard::BlobHash;
use vmm::spec::{
    BalloonSpec, BlobSpec, BootBlobSpec, BootSpec, CpuidSpec, Descriptor, DiskSpec, ExtentSpec,
    FilesystemSpec, LimitsSpec, MetricsSpec, NicLimitsSpec, NicSpec, SPEC_VERSION, SerialSpec,
    VmSpec, VsockSpec,
};

use super::descriptors::InheritedDescriptors;

/// The guest's context id. The VMM serves vsock itself, so that ids need not
/// differ between machines; 0 to 2 are reserved.
const GUEST_CID: u64 = 3;

/// What the guest frees is the host's again. Statistics have nobody who asks yet.
const BALLOON: BalloonSpec = BalloonSpec {
    deflate_on_oom: true,
    statistics: false,
    free_page_reporting: true,
};

/// One microVM that does not run yet.
#[derive(Debug)]
pub struct Machine {
    /// A name of its own, for its cgroup.
    pub id: String,
    /// `/dev/kvm`, opened read-write.
    pub kvm: OwnedFd,
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u32,
    /// What they are like, if not like the host's: a template of
    /// [`vmm::arch::x86_64::cpuid::template`].
    pub cpu_template: Option<String>,
    /// What CPUID may say on this host, if the caller has asked `kvm`
    /// ([`vmm::host_cpuid::ask`]).
    pub supported_cpuid: Option<Vec<CpuidSpec>>,
    /// Guest memory in bytes, a multiple of 4096.
    pub memory_bytes: u64,
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: BootBlob,
    /// A newc archive.
    pub initrd: Option<BootBlob>,
    /// The kernel command line.
    pub command_line: String,
    /// In the order the guest sees them. The init takes the first one, `vda`,
    /// as the image.
    pub disks: Vec<Disk>,
    /// `/dev/urandom`, for the guest's entropy device.
    pub entropy: Option<OwnedFd>,
    /// In the order the guest sees them.
    pub nics: Vec<Nic>,
    /// Namespaces of its VMM's process, if the caller has begun to have them made.
    pub namespaces: Option<NewNamespaces>,
    /// Which of the guest's copies it is, 32 hexadecimal digits.
    pub generation_id: Option<String>,
    /// What its VMM may read from and write to disks of this host.
    pub io_limits: Vec<IoLimit>,
    /// In the order the guest sees them.
    pub filesystems: Vec<Filesystem>,
}

/// A blob that the guest is booted with, which its VMM verifies.
#[derive(Debug)]
pub struct BootBlob {
    /// Its hash.
    pub hash: BlobHash,
    /// Its bytes, all of this file.
    pub file: OwnedFd,
    /// Its hash tree.
    pub outboard: OwnedFd,
}

/// A directory of the host's.
#[derive(Debug)]
pub struct Filesystem {
    /// What the guest mounts it by, at most 36 bytes.
    pub tag: String,
    /// A connection to whoever serves it (vhost-user).
    pub socket: OwnedFd,
}

/// A network device.
#[derive(Debug)]
pub struct Nic {
    /// Its address, such as `02:00:00:00:00:01`.
    pub mac: String,
    /// The queues of a tap interface; see [`crate::network::open_tap`].
    pub taps: Vec<OwnedFd>,
    /// `/dev/vhost-net`, once for each of `taps`, or nothing.
    pub vhost: Vec<OwnedFd>,
    /// How much it may move; not together with `vhost`.
    pub limits: Option<NicLimitsSpec>,
}

/// A disk: extents, one after another.
#[derive(Debug)]
pub struct Disk {
    /// Whether the guest may not write.
    pub read_only: bool,
    /// The pieces the disk is made of.
    pub extents: Vec<Extent>,
    /// The VMM's end of the socket by which it asks for what is missing of partial blobs
    /// ([`vmm::fetch`]).
    pub source: Option<OwnedFd>,
    /// At most 20 bytes of ASCII for the guest to know the disk by.
    pub serial: Option<String>,
    /// How much the guest may read and write.
    pub limits: Option<LimitsSpec>,
}

/// A range of a file.
#[derive(Debug)]
pub struct Extent {
    /// A regular file or a block device. Extents of one file share it.
    pub file: Arc<OwnedFd>,
    /// Where in the file it starts, in bytes.
    pub offset_bytes: u64,
    /// How long it is, in bytes: a multiple of 512.
    pub length_bytes: u64,
    /// What it is, if what the guest reads of it is to be verified: all of a blob. Of a
    /// disk all extents are, or none.
    pub blob: Option<BlobTree>,
}

/// What a blob is verified by.
#[derive(Debug)]
pub struct BlobTree {
    /// Its hash.
    pub hash: BlobHash,
    /// The file of its hash tree.
    pub outboard: Arc<OwnedFd>,
    /// The file of the values of its blocks, if there is one.
    pub blocks: Option<Arc<OwnedFd>>,
    /// Parts of it may not be here yet.
    pub partial: bool,
}

/// The VMM's ends of what connects it with this process.
#[derive(Debug)]
pub(super) struct Ends {
    pub console: OwnedFd,
    pub events: OwnedFd,
    pub channel: OwnedFd,
    pub control: OwnedFd,
    pub metrics: OwnedFd,
}

impl Machine {
    /// The spec for the VMM, all of whose descriptors `inherited` will pass.
    pub(super) fn into_spec(
        self,
        ends: Ends,
        inherited: &mut InheritedDescriptors,
    ) -> rustix::io::Result<VmSpec> {
        let mut pass = |descriptor: OwnedFd| inherited.pass(&Arc::new(descriptor));
        Ok(VmSpec {
            version: SPEC_VERSION,
            kvm: pass(self.kvm)?,
            vcpus: self.vcpus,
            cpu_template: self.cpu_template,
            supported_cpuid: self.supported_cpuid,
            memory_bytes: self.memory_bytes,
            boot: BootSpec {
                kernel: self.kernel.into_spec(&mut pass)?,
                initrd: self
                    .initrd
                    .map(|initrd| initrd.into_spec(&mut pass))
                    .transpose()?,
                command_line: self.command_line,
            },
            serial: Some(SerialSpec {
                output: pass(ends.console)?,
                input: None,
            }),
            entropy: self.entropy.map(&mut pass).transpose()?,
            vsock: Some(VsockSpec {
                guest_cid: GUEST_CID,
                channel: pass(ends.channel)?,
            }),
            balloon: Some(BALLOON),
            generation_id: self.generation_id,
            control: Some(pass(ends.control)?),
            events: Some(pass(ends.events)?),
            consoles: Vec::new(),
            pmem: Vec::new(),
            metrics: Some(MetricsSpec {
                page: pass(ends.metrics)?,
                latencies: vmm::metrics::clock_is_cheap(),
            }),
            filesystems: self
                .filesystems
                .into_iter()
                .map(|filesystem| {
                    Ok(FilesystemSpec {
                        tag: filesystem.tag,
                        socket: pass(filesystem.socket)?,
                    })
                })
                .collect::<rustix::io::Result<_>>()?,
            nics: self
                .nics
                .into_iter()
                .map(|nic| {
                    Ok(NicSpec {
                        mac: nic.mac,
                        taps: nic
                            .taps
                            .into_iter()
                            .map(&mut pass)
                            .collect::<Result<_, _>>()?,
                        mtu: None,
                        vhost: nic
                            .vhost
                            .into_iter()
                            .map(&mut pass)
                            .collect::<Result<_, _>>()?,
                        limits: nic.limits,
                    })
                })
                .collect::<rustix::io::Result<_>>()?,
            disks: self
                .disks
                .into_iter()
                .map(|disk| disk.into_spec(inherited))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl BootBlob {
    fn into_spec(
        self,
        mut pass: impl FnMut(OwnedFd) -> rustix::io::Result<Descriptor>,
    ) -> rustix::io::Result<BootBlobSpec> {
        Ok(BootBlobSpec {
            hash: self.hash,
            file: pass(self.file)?,
            outboard: pass(self.outboard)?,
        })
    }
}

impl Disk {
    fn into_spec(self, inherited: &mut InheritedDescriptors) -> rustix::io::Result<DiskSpec> {
        let extents = self.extents.iter().map(|extent| {
            Ok(ExtentSpec {
                file: inherited.pass(&extent.file)?,
                offset_bytes: extent.offset_bytes,
                length_bytes: extent.length_bytes,
                blob: match &extent.blob {
                    Some(blob) => Some(BlobSpec {
                        partial: blob.partial,
                        hash: blob.hash,
                        outboard: inherited.pass(&blob.outboard)?,
                        blocks: match &blob.blocks {
                            Some(blocks) => Some(inherited.pass(blocks)?),
                            None => None,
                        },
                    }),
                    None => None,
                },
            })
        });
        Ok(DiskSpec {
            read_only: self.read_only,
            extents: extents.collect::<Result<_, rustix::io::Errno>>()?,
            source: match self.source {
                Some(source) => Some(inherited.pass(&Arc::new(source))?),
                None => None,
            },
            serial: self.serial,
            limits: self.limits,
        })
    }
}
