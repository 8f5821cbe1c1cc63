//! CPU features by name: where CPUID tells of each, and what each template holds.
//!
//! Names are those of `/proc/cpuinfo`. The levels are the microarchitecture levels of
//! the System V psABI for x86-64; `docs/cpu-templates.md` says why each template holds
//! what it does.

/// An output register of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// One bit that says that the CPU, or KVM, can do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// What Linux calls it.
    pub name: &'static str,
    /// EAX before CPUID.
    pub leaf: u32,
    /// ECX before CPUID.
    pub subleaf: u32,
    /// Where the answer is.
    pub register: Register,
    /// Which of its bits.
    pub bit: u32,
}

const fn feature(
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u32,
) -> Feature {
    Feature {
        name,
        leaf,
        subleaf,
        register,
        bit,
    }
}

const fn leaf_1_ecx(bit: u32, name: &'static str) -> Feature {
    feature(name, 1, 0, Register::Ecx, bit)
}

const fn leaf_1_edx(bit: u32, name: &'static str) -> Feature {
    feature(name, 1, 0, Register::Edx, bit)
}

const fn leaf_7_ebx(bit: u32, name: &'static str) -> Feature {
    feature(name, 7, 0, Register::Ebx, bit)
}

const fn extended_ecx(bit: u32, name: &'static str) -> Feature {
    feature(name, 0x8000_0001, 0, Register::Ecx, bit)
}

const fn extended_edx(bit: u32, name: &'static str) -> Feature {
    feature(name, 0x8000_0001, 0, Register::Edx, bit)
}

const fn leaf_8_ebx(bit: u32, name: &'static str) -> Feature {
    feature(name, 0x8000_0008, 0, Register::Ebx, bit)
}

const fn kvm(bit: u32, name: &'static str) -> Feature {
    feature(name, 0x4000_0001, 0, Register::Eax, bit)
}

/// The baseline of x86-64, and what every 64-bit kernel counts on.
pub const BASELINE: [Feature; 24] = [
    leaf_1_edx(0, "fpu"),
    leaf_1_edx(2, "de"),
    leaf_1_edx(3, "pse"),
    leaf_1_edx(4, "tsc"),
    leaf_1_edx(5, "msr"),
    leaf_1_edx(6, "pae"),
    leaf_1_edx(7, "mce"),
    leaf_1_edx(8, "cx8"),
    leaf_1_edx(9, "apic"),
    leaf_1_edx(11, "sep"),
    leaf_1_edx(12, "mtrr"),
    leaf_1_edx(13, "pge"),
    leaf_1_edx(14, "mca"),
    leaf_1_edx(15, "cmov"),
    leaf_1_edx(16, "pat"),
    leaf_1_edx(17, "pse36"),
    leaf_1_edx(19, "clflush"),
    leaf_1_edx(23, "mmx"),
    leaf_1_edx(24, "fxsr"),
    leaf_1_edx(25, "sse"),
    leaf_1_edx(26, "sse2"),
    extended_edx(11, "syscall"),
    extended_edx(20, "nx"),
    extended_edx(29, "lm"),
];

/// What KVM does for its guests on every kernel since Linux 5.6 (cpuid.rst of KVM).
pub const PARAVIRTUAL: [Feature; 10] = [
    kvm(0, "kvm_clocksource"),
    kvm(1, "kvm_nop_io_delay"),
    kvm(3, "kvm_clocksource2"),
    kvm(5, "kvm_steal_time"),
    kvm(6, "kvm_pv_eoi"),
    kvm(7, "kvm_pv_unhalt"),
    kvm(9, "kvm_pv_tlb_flush"),
    kvm(11, "kvm_pv_send_ipi"),
    kvm(13, "kvm_pv_sched_yield"),
    kvm(24, "kvm_clocksource_stable"),
];

/// What x86-64-v2 adds to the baseline.
pub const V2: [Feature; 7] = [
    leaf_1_ecx(0, "pni"),
    leaf_1_ecx(9, "ssse3"),
    leaf_1_ecx(13, "cx16"),
    leaf_1_ecx(19, "sse4_1"),
    leaf_1_ecx(20, "sse4_2"),
    leaf_1_ecx(23, "popcnt"),
    extended_ecx(0, "lahf_lm"),
];

/// What x86-64-v3 adds to that, its XSAVE among it.
pub const V3: [Feature; 9] = [
    leaf_1_ecx(12, "fma"),
    leaf_1_ecx(22, "movbe"),
    XSAVE,
    leaf_1_ecx(28, "avx"),
    leaf_1_ecx(29, "f16c"),
    leaf_7_ebx(3, "bmi1"),
    leaf_7_ebx(5, "avx2"),
    leaf_7_ebx(8, "bmi2"),
    extended_ecx(5, "abm"),
];

/// XSAVE, with which leaf 0xd says something.
pub const XSAVE: Feature = leaf_1_ecx(26, "xsave");

/// What both makers' server CPUs with x86-64-v3 have beyond it: Intel's since Haswell,
/// AMD's since Zen.
pub const V3_GENERATION: [Feature; 8] = [
    leaf_1_ecx(1, "pclmulqdq"),
    leaf_1_ecx(25, "aes"),
    leaf_1_ecx(30, "rdrand"),
    leaf_7_ebx(0, "fsgsbase"),
    leaf_7_ebx(7, "smep"),
    feature("xsaveopt", 0xd, 1, Register::Eax, 0),
    extended_edx(26, "pdpe1gb"),
    extended_edx(27, "rdtscp"),
];

/// Control of speculation, as AMD numbers it. KVM tells of it so on Intel's CPUs too.
pub const SPECULATION_CONTROL: [Feature; 4] = [
    leaf_8_ebx(12, "ibpb"),
    leaf_8_ebx(14, "ibrs"),
    leaf_8_ebx(15, "stibp"),
    leaf_8_ebx(24, "ssbd"),
];
