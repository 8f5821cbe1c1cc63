//! Finds out what a `/dev/kvm` can run, by running it.
//!
//! Some hosts without hardware virtualization have a KVM that interprets guest
//! kernel code. It answers every ioctl, but does not know instructions that it
//! announces, by CPUID, and that a Linux kernel therefore uses. So a tiny guest
//! executes each of them, one virtual machine each, and a loop whose speed is told.
//! A processor without one of them is no interpreter: its guests do not see it.

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::ensure;
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::arch::layout;
use crate::arch::x86_64::{cpuid, registers};
use crate::kvm::vm::{API_VERSION, Vm};
use crate::memory;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// `KVM_GET_API_VERSION`; 12 on every KVM in use.
    pub api_version: i32,
    /// Whether a guest ran at all.
    pub ran: bool,
    /// Instructions that a Linux kernel uses where CPUID announces them, that are
    /// announced, and that do not run at privilege level 0.
    pub missing_instructions: Vec<String>,
    /// The speed of a simple loop at privilege level 0: millions on an
    /// interpreter, billions on a processor.
    pub cpl0_instructions_per_second: u64,
    /// Why no guest ran, or what else went wrong.
    pub error: Option<String>,
}

const MEMORY_BYTES: u64 = 4 << 20;
const CODE: GuestAddress = GuestAddress(layout::HIGH_MEMORY);
const DONE_PORT: u16 = 0x80;
/// `out 0x80, al`
const DONE: &[u8] = &[0xe6, DONE_PORT as u8];

/// Turns of the timed loop, of two instructions each: 0.1 s when interpreted.
const LOOP_TURNS: u32 = 100_000;

/// Machine code that needs one instruction. It runs with flat segments, a stack,
/// and nothing else.
struct Case {
    /// The instruction's name.
    name: &'static str,
    /// The bit of CPUID leaf 1, ECX, that announces it; none: every processor of 64
    /// bits has it.
    announced_by: Option<u32>,
    code: &'static [u8],
    /// What a processor makes of it.
    end: End,
}

/// How a tiny guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It came to its last instruction, which says so.
    Done,
    /// There is no interrupt descriptor table to handle an exception.
    TripleFault,
}

const CASES: [Case; 5] = [
    Case {
        name: "popcnt",
        announced_by: Some(23),
        // popcnt eax, ecx
        code: &[0xf3, 0x0f, 0xb8, 0xc1],
        end: End::Done,
    },
    Case {
        name: "cmpxchg16b",
        announced_by: Some(13),
        // cmpxchg16b [rsp - 0x100], aligned by: and rsp, -16
        code: &[
            0x48, 0x83, 0xe4, 0xf0, 0x48, 0x0f, 0xc7, 0x8c, 0x24, 0x00, 0xff, 0xff, 0xff,
        ],
        end: End::Done,
    },
    Case {
        name: "xrstor",
        announced_by: Some(26),
        // mov rax, cr4; or rax, 0x40200 (OSFXSR, OSXSAVE); mov cr4, rax;
        // xor ecx, ecx; xgetbv; lea rdi, [rsp - 0x800]; and rdi, -64;
        // xsave [rdi]; xrstor [rdi]
        code: &[
            0x0f, 0x20, 0xe0, 0x48, 0x0d, 0x00, 0x02, 0x04, 0x00, 0x0f, 0x22, 0xe0, 0x31, 0xc9,
            0x0f, 0x01, 0xd0, 0x48, 0x8d, 0xbc, 0x24, 0x00, 0xf8, 0xff, 0xff, 0x48, 0x83, 0xe7,
            0xc0, 0x0f, 0xae, 0x27, 0x0f, 0xae, 0x2f,
        ],
        end: End::Done,
    },
    Case {
        name: "swapgs",
        announced_by: None,
        // swapgs; lfence: what every kernel entry does
        code: &[0x0f, 0x01, 0xf8, 0x0f, 0xae, 0xe8],
        end: End::Done,
    },
    Case {
        name: "int3",
        announced_by: None,
        // int3: how a kernel patches its own code while it runs
        code: &[0xcc],
        end: End::TripleFault,
    },
];

impl Case {
    /// Whether a guest that reads `cpuid` takes the instruction for granted.
    fn is_announced(&self, cpuid: &CpuId) -> bool {
        let features = cpuid.as_slice().iter().find(|entry| entry.function == 1);
        self.announced_by
            .is_none_or(|bit| features.is_some_and(|entry| entry.ecx & 1 << bit != 0))
    }
}

/// Runs the tiny guests.
pub fn run(kvm: OwnedFd) -> Report {
    let mut report = Report {
        api_version: 0,
        ran: false,
        missing_instructions: Vec::new(),
        cpl0_instructions_per_second: 0,
        error: None,
    };
    if let Err(error) = fill(&mut report, kvm) {
        report.error = Some(format!("{error:#}"));
    }
    report
}

fn fill(report: &mut Report, kvm: OwnedFd) -> anyhow::Result<()> {
    // mov ecx, turns; 1: dec ecx; jnz 1b
    let mut timed = vec![0xb9];
    timed.extend(LOOP_TURNS.to_le_bytes());
    timed.extend([0xff, 0xc9, 0x75, 0xfc]);

    let mut guest = Guest::new(kvm.try_clone()?, &timed)?;
    // Any other is not KVM.
    report.api_version = API_VERSION;
    let start = Instant::now();
    let end = guest.run_to_end()?;
    ensure!(end == End::Done, "the guest crashed in a simple loop");
    let seconds = start.elapsed().as_secs_f64();
    report.ran = true;
    report.cpl0_instructions_per_second = (f64::from(LOOP_TURNS) * 2.0 / seconds) as u64;

    for case in CASES {
        let mut guest = Guest::new(kvm.try_clone()?, case.code)?;
        let is_right = |end: anyhow::Result<End>| end.is_ok_and(|end| end == case.end);
        if case.is_announced(&guest.cpuid) && !is_right(guest.run_to_end()) {
            report.missing_instructions.push(case.name.to_owned());
        }
    }
    Ok(())
}

struct Guest {
    vcpu: VcpuFd,
    /// What it reads with CPUID.
    cpuid: CpuId,
    /// Both must outlive the vCPU's runs.
    _vm: Vm,
    _memory: memory::GuestMemory,
}

impl Guest {
    fn new(kvm: OwnedFd, code: &[u8]) -> anyhow::Result<Self> {
        let memory = memory::create(MEMORY_BYTES)?;
        let vm = Vm::new(crate::kvm::vm::open(kvm)?)?;
        vm.equip(&memory)?;
        registers::write_boot_tables(&memory)?;
        memory.write_slice(&[code, DONE].concat(), CODE)?;
        let vcpu = vm.create_vcpu(0)?;
        let cpuid = cpuid::for_vcpu(&vm.supported_cpuid()?, 0, 1);
        vcpu.set_cpuid2(&cpuid)?;
        registers::enter_long_mode(&vcpu)?;
        registers::set_entry(&vcpu, CODE)?;
        Ok(Self {
            vcpu,
            cpuid,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Runs until the guest ends, one way or the other.
    fn run_to_end(&mut self) -> anyhow::Result<End> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(DONE_PORT, _)) => return Ok(End::Done),
                Ok(VcpuExit::Shutdown) => return Ok(End::TripleFault),
                Ok(VcpuExit::Intr) => {}
                Ok(other) => anyhow::bail!("the guest stopped with {other:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn an_instruction_that_is_not_announced_is_not_asked_for() {
        let announced = |ecx| {
            let entry = kvm_cpuid_entry2 {
                function: 1,
                ecx,
                ..Default::default()
            };
            let cpuid = CpuId::from_entries(&[entry]).unwrap();
            let names = CASES.iter().filter(|case| case.is_announced(&cpuid));
            names.map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(announced(0), ["swapgs", "int3"]);
        assert_eq!(announced(1 << 26), ["xrstor", "swapgs", "int3"]);
        assert_eq!(announced(u32::MAX).len(), CASES.len());
    }
}
