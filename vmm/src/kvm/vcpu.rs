//! One vCPU: enters the guest, hands its exits to the buses.

use std::error::Error;
use std::io;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestAddress;

use crate::arch::x86_64::cpuid;
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::bus::Bus;
use crate::event::{EventKind, EventSink};
use crate::exit::{ExitLine, ExitReason};
use crate::kvm::handover::Handover;
use crate::kvm::pause::{KickedThread, PauseGate, Seat};
use crate::kvm::vm::{Vm, VmError, kvm};
use crate::memory::GuestMemory;
use crate::metrics::page::Metrics;
use crate::metrics::vcpu::VcpuMetrics;
use crate::panics::{Panic, contain};
use crate::seccomp::{self, ThreadKind};

/// What a vCPU's thread makes it of.
#[derive(Clone)]
pub struct Plan {
    /// The virtual machine it belongs to.
    pub vm: Arc<Vm>,
    /// The machine's memory.
    pub memory: GuestMemory,
    /// How many vCPUs there are.
    pub count: u8,
    /// What CPUID says, but for what is each vCPU's own.
    pub cpuid: Arc<CpuId>,
}

/// Why a vCPU cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM did not make it.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Its first state.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// Its thread is not confined.
    #[error("cannot install its thread's system call filter")]
    Filter(#[source] io::Error),
    /// A defect.
    #[error("its thread panicked at {0}")]
    Panic(Panic),
}

/// What a vCPU's thread needs to run it.
pub struct Start {
    /// Where the guest begins.
    pub entry: GuestAddress,
    /// The rest of the machine.
    pub shared: Arc<Shared>,
}

/// Where the thread of a vCPU waits for others, and they for it.
#[derive(Default)]
pub struct StartLine {
    equipped: Handover<()>,
    ready: Handover<Result<(), VcpuError>>,
    start: Handover<Start>,
}

impl StartLine {
    /// The virtual machine has memory and an interrupt controller: vCPUs may be made.
    pub fn equipped(&self) {
        self.equipped.give(());
    }

    /// Waits until the vCPU is made and its thread behind its filter. Before that nobody
    /// may touch what the guest has made: code of the guest's would run in a process with
    /// a thread that may do anything. To be called once.
    pub fn wait_until_ready(&self) -> Result<(), VcpuError> {
        self.ready.take()
    }

    /// Lets the thread run its vCPU.
    pub fn start(&self, start: Start) {
        self.start.give(start);
    }
}

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
    /// Where events go.
    pub events: Arc<EventSink>,
    /// Where exits are counted.
    pub metrics: Metrics,
}

/// The life of the thread of vCPU `index`: it makes the vCPU, puts itself behind its
/// filter, waits for the start, and then is in the guest. It never ends: the process does.
pub fn live(index: u8, plan: &Plan, line: &StartLine) -> ! {
    let made =
        contain(|| make(index, plan, line)).unwrap_or_else(|panic| Err(VcpuError::Panic(panic)));
    let made = made.and_then(|vcpu| {
        // Before the filter: system calls needed only once.
        let thread = KickedThread::here();
        seccomp::install(ThreadKind::Vcpu).map_err(VcpuError::Filter)?;
        Ok((vcpu, thread))
    });
    // Never dropped: the filter does not allow that.
    let (mut vcpu, thread) = match made {
        Ok(made) => made,
        Err(error) => {
            line.ready.give(Err(error));
            rest();
        }
    };
    line.ready.give(Ok(()));
    let Start { entry, shared } = line.start.take();
    let seat = shared.gate.take_seat(index.into(), &mut vcpu, thread);
    // A panic is a defect of the VMM. It must end the microVM, not leave it
    // hanging with a vCPU less.
    let outcome = contain(|| start(&mut vcpu, index, entry, &seat, &shared))
        .unwrap_or_else(|panic| Err(format!("the thread of vCPU {index} panicked at {panic}")));
    if let Err(reason) = outcome {
        shared.exit.pull(ExitReason::HostFailure(reason));
    }
    rest()
}

fn make(index: u8, plan: &Plan, line: &StartLine) -> Result<VcpuFd, VcpuError> {
    let is_boot_vcpu = index == 0;
    if is_boot_vcpu {
        registers::write_boot_tables(&plan.memory)?;
    }
    line.equipped.take();
    let vcpu = plan.vm.create_vcpu(index)?;
    vcpu.set_cpuid2(&cpuid::for_vcpu(&plan.cpuid, index, plan.count))
        .map_err(kvm("set what CPUID says (KVM_SET_CPUID2)"))?;
    registers::set_firmware_msrs(&vcpu)?;
    // The others wait for the boot vCPU to wake them.
    if is_boot_vcpu {
        registers::enter_long_mode(&vcpu)?;
    }
    Ok(vcpu)
}

fn rest() -> ! {
    loop {
        std::thread::park();
    }
}

fn start(
    vcpu: &mut VcpuFd,
    index: u8,
    entry: GuestAddress,
    seat: &Seat,
    shared: &Shared,
) -> Result<(), String> {
    if index == 0 {
        registers::set_entry(vcpu, entry).map_err(|error| with_sources(&error))?;
        shared.events.send(EventKind::GuestEntered);
    }
    let metrics = shared.metrics.vcpu(index);
    while shared.exit.reason().is_none() {
        let result = if seat.is_wanted_outside() {
            settle(vcpu, seat, shared, &metrics).map(|()| seat.park())
        } else {
            enter(vcpu, shared, &metrics)
        };
        if let Err(reason) = result {
            shared.exit.pull(reason);
        }
    }
    Ok(())
}

fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

/// Lets KVM finish the access that the guest left for, so that all there is to
/// know of the vCPU can be read from it. KVM does not enter the guest meanwhile,
/// so only the rest of one instruction's accesses can follow.
fn settle(
    vcpu: &mut VcpuFd,
    seat: &Seat,
    shared: &Shared,
    metrics: &VcpuMetrics,
) -> Result<(), ExitReason> {
    loop {
        seat.stay_outside();
        if step(vcpu, shared, metrics)? != Stepped::Handled {
            return Ok(());
        }
    }
}

/// How often in a row KVM may ask to be called again. It does so once for a vCPU
/// that waits to be started, and without end if it cannot make a thread of its own.
const MAX_REFUSALS: u32 = 1000;

/// Enters the guest until something comes of it.
fn enter(vcpu: &mut VcpuFd, shared: &Shared, metrics: &VcpuMetrics) -> Result<(), ExitReason> {
    for _ in 0..MAX_REFUSALS {
        if step(vcpu, shared, metrics)? != Stepped::Refused {
            return Ok(());
        }
    }
    Err(ExitReason::HostFailure(
        "KVM does not run the vCPU (KVM_RUN: EAGAIN): is there a limit on processes?".to_owned(),
    ))
}

/// What an entry came to, if it did not end the microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stepped {
    /// An exit that has been handled.
    Handled,
    /// Nothing: there was a signal, or the vCPU is to stay outside.
    Interrupted,
    /// Nothing: KVM asks to be called again.
    Refused,
}

/// Enters the guest once.
fn step(vcpu: &mut VcpuFd, shared: &Shared, metrics: &VcpuMetrics) -> Result<Stepped, ExitReason> {
    let fault = |reason: &str| Err(ExitReason::GuestFault(reason.to_owned()));
    let result = vcpu.run();
    let exit = metrics.count(&result);
    match result {
        Ok(VcpuExit::IoOut(port, data)) => shared.ports.write(port.into(), data),
        Ok(VcpuExit::IoIn(port, data)) => shared.ports.read(port.into(), data),
        Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
        Ok(VcpuExit::IrqWindowOpen) => {}
        Ok(VcpuExit::Intr) => return Ok(Stepped::Interrupted),
        Ok(VcpuExit::Shutdown) => return fault("triple fault"),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
            return Err(ExitReason::PoweredOff);
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Err(ExitReason::Reset),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => return fault("the guest crashed"),
        Ok(VcpuExit::InternalError) => return Err(internal_error(vcpu)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return fault(&format!(
                "the processor refused to enter the guest (reason {reason:#x}, CPU {cpu})"
            ));
        }
        Ok(other) => {
            return fault(&format!(
                "KVM left the guest for a reason unknown here: {other:?}"
            ));
        }
        Err(e) if e.errno() == libc::EINTR => return Ok(Stepped::Interrupted),
        Err(e) if e.errno() == libc::EAGAIN => return Ok(Stepped::Refused),
        Err(e) => return fault(&format!("KVM cannot run the vCPU (KVM_RUN): {e}")),
    }
    metrics.served(exit);
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
