//! Finds out what a `/dev/kvm` can run, by running it.
//!
//! Some hosts without hardware virtualization have a KVM that interprets guest
//! kernel code. It answers every ioctl, but does not know the instructions that
//! a Linux kernel uses. So a tiny guest executes each of them, one virtual
//! machine each, and a loop whose speed tells an interpreter from a processor.

use std::os::fd::OwnedFd;
use std::time::Instant;

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
    /// Instructions a Linux kernel needs that do not run at privilege level 0.
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

/// Machine code that needs one instruction, and that instruction's name. Each
/// runs with flat segments, a stack, and nothing else.
const CASES: &[(&str, &[u8])] = &[
    // popcnt eax, ecx
    ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc1]),
    // cmpxchg16b [rsp - 0x100], aligned by: and rsp, -16
    (
        "cmpxchg16b",
        &[
            0x48, 0x83, 0xe4, 0xf0, 0x48, 0x0f, 0xc7, 0x8c, 0x24, 0x00, 0xff, 0xff, 0xff,
        ],
    ),
    // mov rax, cr4; or rax, 0x40200 (OSFXSR, OSXSAVE); mov cr4, rax;
    // xor ecx, ecx; xgetbv; lea rdi, [rsp - 0x800]; and rdi, -64;
    // xsave [rdi]; xrstor [rdi]
    (
        "xrstor",
        &[
            0x0f, 0x20, 0xe0, 0x48, 0x0d, 0x00, 0x02, 0x04, 0x00, 0x0f, 0x22, 0xe0, 0x31, 0xc9,
            0x0f, 0x01, 0xd0, 0x48, 0x8d, 0xbc, 0x24, 0x00, 0xf8, 0xff, 0xff, 0x48, 0x83, 0xe7,
            0xc0, 0x0f, 0xae, 0x27, 0x0f, 0xae, 0x2f,
        ],
    ),
    // swapgs; lfence: what every kernel entry does
    ("swapgs", &[0x0f, 0x01, 0xf8, 0x0f, 0xae, 0xe8]),
];

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
    // `Vm::new` refuses any other.
    report.api_version = API_VERSION;
    let start = Instant::now();
    guest.run_to_end()?;
    let seconds = start.elapsed().as_secs_f64();
    report.ran = true;
    report.cpl0_instructions_per_second = (f64::from(LOOP_TURNS) * 2.0 / seconds) as u64;

    for (name, code) in CASES {
        if Guest::new(kvm.try_clone()?, code)?.run_to_end().is_err() {
            report.missing_instructions.push((*name).to_owned());
        }
    }
    Ok(())
}

struct Guest {
    vcpu: VcpuFd,
    /// Both must outlive the vCPU's runs.
    _vm: Vm,
    _memory: memory::GuestMemory,
}

impl Guest {
    fn new(kvm: OwnedFd, code: &[u8]) -> anyhow::Result<Self> {
        let memory = memory::create(MEMORY_BYTES)?;
        let vm = Vm::new(kvm, &memory)?;
        registers::write_boot_tables(&memory)?;
        memory.write_slice(&[code, DONE].concat(), CODE)?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&vm.supported_cpuid()?, 0, 1))?;
        registers::set_boot_registers(&vcpu, CODE)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Runs until the guest says it is done; anything else is an error. There
    /// is no interrupt descriptor table, so an undefined instruction ends in a
    /// triple fault.
    fn run_to_end(&mut self) -> anyhow::Result<()> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(DONE_PORT, _)) => return Ok(()),
                Ok(VcpuExit::Intr) => {}
                Ok(other) => anyhow::bail!("the guest stopped with {other:?}"),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
