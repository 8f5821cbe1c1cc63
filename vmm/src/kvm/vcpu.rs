//! One vCPU: enters the guest, hands its exits to the buses.

use std::sync::Arc;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::exit::{ExitLine, ExitReason};
use crate::kvm::pause::{PauseGate, Seat};

/// What all vCPUs share.
pub struct Shared {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
    /// How it ends.
    pub exit: Arc<ExitLine>,
    /// How they are brought out of the guest.
    pub gate: Arc<PauseGate>,
}

/// Runs vCPU `index` on this thread until the microVM ends.
pub fn run(mut vcpu: VcpuFd, index: usize, shared: &Shared) {
    let seat = shared.gate.take_seat(index, &mut vcpu);
    while shared.exit.reason().is_none() {
        let result = if seat.is_wanted_outside() {
            let settled = settle(&mut vcpu, &seat, shared);
            if settled.is_ok() {
                seat.park();
            }
            settled
        } else {
            step(&mut vcpu, shared).map(|_| ())
        };
        if let Err(reason) = result {
            shared.exit.pull(reason);
        }
    }
}

/// Lets KVM finish the access that the guest left for, so that all there is to
/// know of the vCPU can be read from it. KVM does not enter the guest meanwhile,
/// so only the rest of one instruction's accesses can follow.
fn settle(vcpu: &mut VcpuFd, seat: &Seat, shared: &Shared) -> Result<(), ExitReason> {
    loop {
        seat.stay_outside();
        if step(vcpu, shared)? == Stepped::Interrupted {
            return Ok(());
        }
    }
}

/// What an entry came to, if it did not end the microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stepped {
    /// An exit that has been handled.
    Handled,
    /// Nothing: there was a signal, or the vCPU is to stay outside.
    Interrupted,
}

/// Enters the guest once.
fn step(vcpu: &mut VcpuFd, shared: &Shared) -> Result<Stepped, ExitReason> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => shared.ports.write(port.into(), data),
        Ok(VcpuExit::IoIn(port, data)) => shared.ports.read(port.into(), data),
        Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
        Ok(VcpuExit::IrqWindowOpen) => {}
        Ok(VcpuExit::Intr) => return Ok(Stepped::Interrupted),
        Ok(VcpuExit::Shutdown) => {
            return Err(ExitReason::GuestFault("triple fault".to_owned()));
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
            return Err(ExitReason::PoweredOff);
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Err(ExitReason::Reset),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
            return Err(ExitReason::GuestFault("the guest crashed".to_owned()));
        }
        Ok(VcpuExit::InternalError) => return Err(internal_error(vcpu)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Err(ExitReason::GuestFault(format!(
                "the processor refused to enter the guest (reason {reason:#x}, CPU {cpu})"
            )));
        }
        Ok(other) => {
            let reason = format!("KVM left the guest for a reason unknown here: {other:?}");
            return Err(ExitReason::GuestFault(reason));
        }
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
            return Ok(Stepped::Interrupted);
        }
        Err(e) => {
            let reason = format!("KVM cannot run the vCPU (KVM_RUN): {e}");
            return Err(ExitReason::GuestFault(reason));
        }
    }
    Ok(Stepped::Handled)
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
