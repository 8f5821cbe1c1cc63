//! One vCPU: enters the guest, hands its exits to the buses.

use std::sync::Arc;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::exit::{ExitLine, ExitReason};

/// What all vCPUs share.
pub struct Shared {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
    /// How it ends.
    pub exit: Arc<ExitLine>,
}

/// Runs the guest on this thread until the microVM ends.
pub fn run(mut vcpu: VcpuFd, shared: &Shared) {
    while shared.exit.reason().is_none() {
        if let Some(reason) = step(&mut vcpu, shared) {
            shared.exit.pull(reason);
        }
    }
}

/// Enters the guest once.
fn step(vcpu: &mut VcpuFd, shared: &Shared) -> Option<ExitReason> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => shared.ports.write(port.into(), data),
        Ok(VcpuExit::IoIn(port, data)) => shared.ports.read(port.into(), data),
        Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
        Ok(VcpuExit::Shutdown) => {
            return Some(ExitReason::GuestFault("triple fault".to_owned()));
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
            return Some(ExitReason::PoweredOff);
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Some(ExitReason::Reset),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
            return Some(ExitReason::GuestFault("the guest crashed".to_owned()));
        }
        Ok(VcpuExit::InternalError) => return Some(internal_error(vcpu)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Some(ExitReason::GuestFault(format!(
                "the processor refused to enter the guest (reason {reason:#x}, CPU {cpu})"
            )));
        }
        Ok(other) => {
            let reason = format!("KVM left the guest for a reason unknown here: {other:?}");
            return Some(ExitReason::GuestFault(reason));
        }
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
        Err(e) => {
            let reason = format!("KVM cannot run the vCPU (KVM_RUN): {e}");
            return Some(ExitReason::GuestFault(reason));
        }
    }
    None
}

fn internal_error(vcpu: &mut VcpuFd) -> ExitReason {
    let at = vcpu
        .get_regs()
        .map_or_else(|_| "unknown".to_owned(), |regs| format!("{:#x}", regs.rip));
    // SAFETY: after an exit for KVM_EXIT_INTERNAL_ERROR, and only then, is this
    // the union's live member (KVM API, "struct kvm_run"); the caller saw that
    // exit, and no other has been made since.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let what = if suberror == KVM_INTERNAL_ERROR_EMULATION {
        "KVM cannot emulate the instruction"
    } else {
        "KVM failed inside"
    };
    ExitReason::GuestFault(format!(
        "{what} at guest address {at} (internal error {suberror}); \
         on a machine without hardware virtualization Linux guests need the lab"
    ))
}
