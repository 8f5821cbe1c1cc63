//! The virtual machine: memory, interrupt controller, event descriptors.

use std::os::fd::{IntoRawFd, OwnedFd};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::devices::virtio::pmem::mapping::Mapping;
use crate::memory::GuestMemory;

/// `KVM_API_VERSION`; it has not changed since Linux 2.6.22.
pub const API_VERSION: i32 = 12;

/// A descriptor is not KVM's, or an impossibly old one's.
#[derive(Debug, thiserror::Error)]
#[error("must be /dev/kvm: asked for its API version it answers {0}, not {API_VERSION}")]
pub struct NotKvm(i32);

/// Makes sure that `descriptor` is `/dev/kvm` (`KVM_GET_API_VERSION`).
pub fn open(descriptor: OwnedFd) -> Result<Kvm, NotKvm> {
    // SAFETY: the descriptor is open and owned here; `Kvm` takes it over. Whether it is
    // /dev/kvm is what the next call finds out.
    let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(descriptor.into_raw_fd()) };
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(NotKvm(other)),
    }
}

/// Why KVM cannot run the microVM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// An ioctl was refused.
    #[error("KVM refused to {action}")]
    Kvm {
        /// What was asked.
        action: &'static str,
        /// What it answered.
        source: kvm_ioctls::Error,
    },
}

pub(crate) fn kvm(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { action, source }
}

/// What CPUID may say on this host.
pub fn supported_cpuid(device: &Kvm) -> Result<CpuId, VmError> {
    device
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("list CPU features (KVM_GET_SUPPORTED_CPUID)"))
}

/// A virtual machine with memory and an interrupt controller.
pub struct Vm {
    device: Kvm,
    vm: VmFd,
}

impl Vm {
    /// Creates a virtual machine that has nothing yet.
    pub fn new(device: Kvm) -> Result<Self, VmError> {
        let vm = device
            .create_vm()
            .map_err(kvm("create a virtual machine (KVM_CREATE_VM)"))?;
        Ok(Self { device, vm })
    }

    /// Gives it `memory` and an interrupt controller.
    ///
    /// The order is measured: with memory registered before the interrupt
    /// controller exists, creating both takes a tenth of the time.
    pub fn equip(&self, memory: &GuestMemory) -> Result<(), VmError> {
        self.attach(memory)?;
        self.vm
            .set_tss_address(layout::KVM_TSS)
            .map_err(kvm("place its three pages (KVM_SET_TSS_ADDR)"))?;
        self.vm
            .create_irq_chip()
            .map_err(kvm("create the interrupt controller (KVM_CREATE_IRQCHIP)"))
    }

    /// Puts `mapping` into the guest's memory at `start`, as memory slot `slot`.
    ///
    /// What the guest writes to one that must not be written leaves the guest as an
    /// access to a device that is not there, and is lost (`KVM_MEM_READONLY`).
    pub fn attach_mapping(
        &self,
        slot: u32,
        start: GuestAddress,
        mapping: &Mapping,
    ) -> Result<(), VmError> {
        let memslot = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: start.raw_value(),
            memory_size: mapping.bytes(),
            userspace_addr: mapping.address(),
            flags: match mapping.read_only() {
                true => KVM_MEM_READONLY,
                false => 0,
            },
        };
        // SAFETY: the range is that of a mapping which lasts as long as the process
        // and which nothing else in it reads or writes; KVM refuses slots that
        // overlap.
        unsafe { self.vm.set_user_memory_region(memslot) }.map_err(kvm(
            "register a file as memory (KVM_SET_USER_MEMORY_REGION)",
        ))
    }

    fn attach(&self, memory: &GuestMemory) -> Result<(), VmError> {
        for (region, slot) in memory.iter().zip(0..) {
            let memslot = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: the range is the mapping of one region of `memory`, which stays
            // mapped until the process ends ([`crate::memory::create`]), and regions do
            // not overlap.
            unsafe { self.vm.set_user_memory_region(memslot) }
                .map_err(kvm("register guest memory (KVM_SET_USER_MEMORY_REGION)"))?;
        }
        Ok(())
    }

    /// What CPUID may say on this host.
    pub fn supported_cpuid(&self) -> Result<CpuId, VmError> {
        supported_cpuid(&self.device)
    }

    /// Creates vCPU `index`.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        self.vm
            .create_vcpu(index.into())
            .map_err(kvm("create a vCPU (KVM_CREATE_VCPU)"))
    }

    /// Raises `gsi` whenever `line` is written.
    pub fn connect_interrupt(&self, line: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.vm
            .register_irqfd(line, gsi)
            .map_err(kvm("connect an interrupt (KVM_IRQFD)"))
    }

    /// Writes `doorbell` whenever the guest writes `value` to `address`.
    pub fn connect_doorbell(
        &self,
        doorbell: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), VmError> {
        self.vm
            .register_ioevent(doorbell, &IoEventAddress::Mmio(address), value)
            .map_err(kvm("connect a doorbell (KVM_IOEVENTFD)"))
    }
}
