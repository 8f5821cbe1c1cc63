//! A virtual machine that never runs.

use anyhow::Context;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// A machine that is there as long as the lab, so that no other is the first or
/// the last one.
///
/// With the first and the last one KVM patches the running kernel (its static
/// keys) and switches virtualization on and off on all processors. QEMU before
/// 8.1 may translate code that another processor changes at that moment and keep
/// the translation: the lab's kernel then stood still for ever at a breakpoint
/// that was no longer there.
pub struct StandIn {
    // A vCPU with a local APIC that is switched off keeps the keys of those.
    _vcpu: VcpuFd,
    _vm: VmFd,
}

impl StandIn {
    /// Creates it.
    pub fn create() -> anyhow::Result<Self> {
        let vm = Kvm::new()
            .context("cannot open /dev/kvm")?
            .create_vm()
            .context("cannot create the stand-in machine")?;
        vm.create_irq_chip()
            .context("cannot give the stand-in machine its interrupt controllers")?;
        let vcpu = vm
            .create_vcpu(0)
            .context("cannot create the stand-in machine's vCPU")?;
        Ok(Self {
            _vcpu: vcpu,
            _vm: vm,
        })
    }
}
