//! The machine a workload runs in: kernel, initrd, CPUs, memory, disk.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use hostagent::assets::{Assets, boot_file};
use hostagent::guest_kernel::{KernelKind, identify, initrd_with_modules, module_tree};
use hostagent::store::{Blob, BlobIdentity, BootFile, BootRecord, Lease, Store, StoreError};
use hostagent::vm_process::{BootBlob, Disk, Filesystem, Machine, Nic};
use vmm::host_cpuid;
use vmm::spec::CpuidSpec;

use super::identity::SHORT_ID;

/// What every guest kernel is told. The console is for errors: the init
/// reports over vsock. A kernel that panics resets at once, which ends the VM.
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 noreplace-smp pci=off";

/// This host's KVM.
#[derive(Debug)]
struct Kvm {
    device: File,
    /// What CPUID may say.
    supported_cpuid: Vec<CpuidSpec>,
}

impl Kvm {
    /// Opens `/dev/kvm`, and asks what CPUID may say, which can take it long.
    fn open() -> anyhow::Result<Self> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .context("cannot open /dev/kvm; `mote doctor` tells what this machine can run")?;
        let supported_cpuid = host_cpuid::ask(device.as_fd())
            .context("cannot use /dev/kvm; `mote doctor` tells what this machine can run")?;
        Ok(Self {
            device,
            supported_cpuid,
        })
    }
}

/// What the machine boots, and what runs it.
#[derive(Debug)]
pub struct Boot {
    /// What is wrong with it is told when it is needed: without it an image can be fetched.
    kvm: anyhow::Result<Kvm>,
    kernel: BootFile,
    initrd: BootFile,
    /// Both, if they are what every guest boots.
    record: Option<BootRecord>,
}

impl Boot {
    /// Opens our own kernel and initrd, or the user's kernel; one of a distribution gets
    /// its modules with the initrd. Looks at `/dev/kvm`.
    pub fn prepare(
        assets: &Assets,
        kernel: Option<&Path>,
        modules: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let (kernel, initrd, record) = match kernel {
            None => assets.boot_files()?,
            Some(kernel) => {
                let initrd = match identify(kernel)? {
                    KernelKind::BzImage { version } => {
                        let tree = module_tree(kernel, &version, modules)?;
                        let initrd = assets.initrd()?;
                        BootFile {
                            what: format!("{} with modules", initrd.display()),
                            file: initrd_with_modules(kernel, &initrd, &tree)?,
                            identity: None,
                        }
                    }
                    _ => assets.initrd_file()?,
                };
                (boot_file(kernel.to_owned(), None)?, initrd, None)
            }
        };
        Ok(Self {
            kvm: Kvm::open(),
            kernel,
            initrd,
            record,
        })
    }

    /// The same as blobs of `store`, which stay there as long as `lease`.
    pub fn stored(mut self, store: &Store, lease: &Lease) -> Result<StoredBoot, StoreError> {
        let kernel = store.obtain_boot(&mut self.kernel, lease)?;
        let initrd = store.obtain_boot(&mut self.initrd, lease)?;
        if let Some(record) = &self.record {
            store.record_boot(record)?;
        }
        Ok(StoredBoot {
            kvm: self.kvm,
            kernel,
            initrd,
        })
    }
}

/// What the machine boots, in the store, and what runs it.
#[derive(Debug)]
pub struct StoredBoot {
    kvm: anyhow::Result<Kvm>,
    kernel: Blob,
    initrd: Blob,
}

impl StoredBoot {
    /// The blobs it is booted with.
    pub fn blobs(&self) -> [BlobIdentity; 2] {
        [self.kernel.identity, self.initrd.identity]
    }

    /// The whole machine.
    pub fn into_machine(
        self,
        id: &str,
        vcpus: u32,
        memory_bytes: u64,
        image: Disk,
        nics: Vec<Nic>,
        filesystems: Vec<Filesystem>,
    ) -> anyhow::Result<Machine> {
        let kvm = self.kvm?;
        let entropy = File::open("/dev/urandom").context("cannot open /dev/urandom")?;
        Ok(Machine {
            id: id.chars().take(SHORT_ID).collect(),
            kvm: kvm.device.into(),
            vcpus,
            cpu_template: None,
            supported_cpuid: Some(kvm.supported_cpuid),
            memory_bytes,
            kernel: boot_blob(self.kernel),
            initrd: Some(boot_blob(self.initrd)),
            command_line: COMMAND_LINE.to_owned(),
            disks: vec![image],
            entropy: Some(entropy.into()),
            nics,
            namespaces: None,
            generation_id: None,
            io_limits: Vec::new(),
            filesystems,
        })
    }
}

fn boot_blob(blob: Blob) -> BootBlob {
    BootBlob {
        hash: blob.identity.hash,
        file: blob.data.into(),
        outboard: blob.outboard.into(),
    }
}
