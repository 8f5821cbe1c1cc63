//! CPU templates: named sets of features, so that a guest sees the same CPU on every
//! host that has one.
//!
//! A template gives a guest exactly the features that it names. A host that lacks one
//! of them is refused; what a host has beyond them the guest does not see. So for one
//! template all leaves that tell of features are the same on any two hosts, and stay so
//! for as long as the template's revision does. The maker, the signature (family, model
//! and stepping) and the caches are the host's.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::features::{
    BASELINE, Feature, PARAVIRTUAL, Register, SPECULATION_CONTROL, V2, V3, V3_GENERATION, XSAVE,
};
use super::{
    ECX_HYPERVISOR, ECX_TSC_DEADLINE, ECX_X2APIC, LEAF_AMD_SIZES, LEAF_CACHES, LEAF_FEATURES,
};

/// The last leaf of each range.
const MAX_BASIC: u32 = 0xd;
const MAX_KVM: u32 = 0x4000_0001;
const MAX_EXTENDED: u32 = 0x8000_0008;

const LEAF_MAKER: u32 = 0;
const LEAF_CACHE_DESCRIPTORS: u32 = 2;
const LEAF_POWER: u32 = 6;
const LEAF_MORE_FEATURES: u32 = 7;
const LEAF_STATE: u32 = 0xd;
const LEAF_KVM: u32 = 0x4000_0000;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_EXTENDED: u32 = 0x8000_0000;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
const LEAF_BRAND: u32 = 0x8000_0002;
const LEAF_AMD_L1: u32 = 0x8000_0005;
const LEAF_AMD_L2: u32 = 0x8000_0006;

/// EBX of leaf 1: what CLFLUSH flushes, in units of eight bytes. All CPUs flush 64.
const CLFLUSH_64_BYTES: u32 = 8 << 8;
/// EAX of leaf 6: the APIC's timer never stops, as KVM's never does.
const ARAT: u32 = 1 << 2;
/// Physical addresses of a guest: the least that servers have. Guest memory and what
/// is mapped above it must fit.
pub const PHYSICAL_BITS: u32 = 40;
const LINEAR_BITS: u32 = 48;

/// The state components of XSAVE that a template can hold (Intel SDM volume 1, section
/// 13.4): x87 and SSE lie in the legacy region and header; AVX follows.
const LEGACY_STATE: u32 = 0b11;
const LEGACY_STATE_BYTES: u32 = 576;
const AVX_STATE: u32 = 2;
const AVX_STATE_BYTES: u32 = 256;

/// A named and numbered set of CPU features.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    name: &'static str,
    features: &'static [&'static [Feature]],
}

/// All templates. One that was released never changes: another set is another revision.
pub static TEMPLATES: [Template; 3] = [
    Template {
        name: "x86-64-v1.1",
        features: &[&BASELINE, &PARAVIRTUAL],
    },
    Template {
        name: "x86-64-v2.1",
        features: &[&BASELINE, &PARAVIRTUAL, &V2],
    },
    Template {
        name: "x86-64-v3.1",
        features: &[
            &BASELINE,
            &PARAVIRTUAL,
            &V2,
            &V3,
            &V3_GENERATION,
            &SPECULATION_CONTROL,
        ],
    },
];

/// A host cannot keep what a template promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cpu_template {template:?} promises what this host's CPU or KVM does not have: {missing}; \
     choose one with less, or another host"
)]
pub struct TemplateError {
    /// The template.
    pub template: &'static str,
    /// The features that are missing, by name.
    pub missing: String,
}

impl Template {
    /// The template of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TEMPLATES.iter().find(|template| template.name == name)
    }

    /// What can be given for a name, for messages.
    pub fn names() -> String {
        let names: Vec<_> = TEMPLATES.iter().map(Self::name).collect();
        names.join(", ")
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its features.
    pub fn features(&self) -> impl Iterator<Item = &'static Feature> {
        self.features.iter().copied().flatten()
    }

    fn has(&self, feature: &Feature) -> bool {
        self.features().any(|mine| mine == feature)
    }

    /// What a guest reads with this template on a host that supports `supported`
    /// (`KVM_GET_SUPPORTED_CPUID`), before it is corrected for each vCPU. Leaves that
    /// are not here read as zero.
    pub fn apply(&self, supported: &CpuId) -> Result<CpuId, TemplateError> {
        self.check(supported)?;
        let host = |leaf, subleaf| find(supported, leaf, subleaf);
        let maker = host(LEAF_MAKER, 0);
        let signature = |leaf| host(leaf, 0).eax;
        let mut entries = vec![
            kvm_cpuid_entry2 {
                eax: MAX_BASIC,
                ..maker
            },
            kvm_cpuid_entry2 {
                eax: signature(LEAF_FEATURES),
                ebx: CLFLUSH_64_BYTES,
                ecx: self.mask(LEAF_FEATURES, 0, Register::Ecx)
                    | ECX_HYPERVISOR
                    | ECX_TSC_DEADLINE
                    | ECX_X2APIC,
                edx: self.mask(LEAF_FEATURES, 0, Register::Edx),
                ..leaf(LEAF_FEATURES)
            },
            host(LEAF_CACHE_DESCRIPTORS, 0),
            kvm_cpuid_entry2 {
                eax: ARAT,
                ..leaf(LEAF_POWER)
            },
            kvm_cpuid_entry2 {
                ebx: self.mask(LEAF_MORE_FEATURES, 0, Register::Ebx),
                ..subleaf(LEAF_MORE_FEATURES, 0)
            },
            kvm_cpuid_entry2 {
                eax: MAX_KVM,
                ..host(LEAF_KVM, 0)
            },
            kvm_cpuid_entry2 {
                eax: self.mask(LEAF_KVM_FEATURES, 0, Register::Eax),
                ..leaf(LEAF_KVM_FEATURES)
            },
            kvm_cpuid_entry2 {
                eax: MAX_EXTENDED,
                ..host(LEAF_EXTENDED, 0)
            },
            kvm_cpuid_entry2 {
                eax: signature(LEAF_EXTENDED_FEATURES),
                ecx: self.mask(LEAF_EXTENDED_FEATURES, 0, Register::Ecx) | core_count_of(&maker),
                edx: self.mask(LEAF_EXTENDED_FEATURES, 0, Register::Edx),
                ..leaf(LEAF_EXTENDED_FEATURES)
            },
            host(LEAF_AMD_L1, 0),
            host(LEAF_AMD_L2, 0),
            kvm_cpuid_entry2 {
                eax: LINEAR_BITS << 8 | PHYSICAL_BITS,
                ebx: self.mask(LEAF_AMD_SIZES, 0, Register::Ebx),
                ..leaf(LEAF_AMD_SIZES)
            },
        ];
        let caches = supported.as_slice().iter();
        entries.extend(caches.filter(|entry| entry.function == LEAF_CACHES));
        entries.extend(self.brand());
        entries.extend(self.state());
        // What KVM tells is far below the wrapper's limit, and this is hardly longer.
        let cpuid = CpuId::from_entries(&entries);
        cpuid.map_err(|_| self.error("room in the list of KVM_SET_CPUID2".to_owned()))
    }

    /// Whether the host has all that is promised.
    fn check(&self, supported: &CpuId) -> Result<(), TemplateError> {
        let has = |feature: &Feature| {
            let entry = find(supported, feature.leaf, feature.subleaf);
            register(&entry, feature.register) & 1 << feature.bit != 0
        };
        let missing = self.features().filter(|feature| !has(feature));
        let mut missing: Vec<_> = missing.map(|feature| feature.name.to_owned()).collect();
        let sizes = find(supported, LEAF_AMD_SIZES, 0).eax;
        if sizes & 0xff < PHYSICAL_BITS || sizes >> 8 & 0xff < LINEAR_BITS {
            missing.push(format!("addresses of {PHYSICAL_BITS} bits"));
        }
        if self.has(&XSAVE) {
            let avx = find(supported, LEAF_STATE, AVX_STATE);
            let enabled = find(supported, LEAF_STATE, 0).eax & self.state_mask();
            let place = (avx.eax, avx.ebx, avx.ecx);
            if enabled != self.state_mask() || place != (AVX_STATE_BYTES, LEGACY_STATE_BYTES, 0) {
                missing.push("state of AVX where it belongs".to_owned());
            }
        }
        match missing.is_empty() {
            true => Ok(()),
            false => Err(self.error(missing.join(", "))),
        }
    }

    fn error(&self, missing: String) -> TemplateError {
        TemplateError {
            template: self.name,
            missing,
        }
    }

    /// Its features in one register.
    fn mask(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        let here = |feature: &&Feature| {
            (feature.leaf, feature.subleaf, feature.register) == (leaf, subleaf, register)
        };
        let bits = self.features().filter(here);
        bits.fold(0, |mask, feature| mask | 1 << feature.bit)
    }

    /// The components of XSAVE that a guest may enable in XCR0.
    fn state_mask(&self) -> u32 {
        LEGACY_STATE | 1 << AVX_STATE
    }

    /// Leaf 0xd, whose sizes are those of the components that are left: without XSAVE
    /// it reads as zero. KVM keeps EBX of its first subleaf to what is enabled.
    fn state(&self) -> Vec<kvm_cpuid_entry2> {
        if !self.has(&XSAVE) {
            return Vec::new();
        }
        vec![
            kvm_cpuid_entry2 {
                eax: self.state_mask(),
                ebx: LEGACY_STATE_BYTES,
                ecx: LEGACY_STATE_BYTES + AVX_STATE_BYTES,
                ..subleaf(LEAF_STATE, 0)
            },
            kvm_cpuid_entry2 {
                eax: self.mask(LEAF_STATE, 1, Register::Eax),
                ..subleaf(LEAF_STATE, 1)
            },
            kvm_cpuid_entry2 {
                eax: AVX_STATE_BYTES,
                ebx: LEGACY_STATE_BYTES,
                ..subleaf(LEAF_STATE, AVX_STATE)
            },
        ]
    }

    /// The brand string: 48 bytes in three leaves, which do not name the host's CPU.
    fn brand(&self) -> [kvm_cpuid_entry2; 3] {
        let mut text = [0; 48];
        let brand = format!("mote {}", self.name);
        for (to, from) in text.iter_mut().zip(brand.bytes()) {
            *to = from;
        }
        std::array::from_fn(|third| {
            let word = |index: usize| {
                let at = 16 * third + 4 * index;
                u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
            };
            kvm_cpuid_entry2 {
                eax: word(0),
                ebx: word(1),
                ecx: word(2),
                edx: word(3),
                ..leaf(LEAF_BRAND + third as u32)
            }
        })
    }
}

fn leaf(function: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        ..Default::default()
    }
}

fn subleaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..leaf(function)
    }
}

/// Of AMD's CPUs, that what is counted in leaf 1 are cores: else they would be taken
/// for the threads of one (ECX of leaf 0x80000001, CmpLegacy).
fn core_count_of(maker: &kvm_cpuid_entry2) -> u32 {
    let registers = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
    match registers.as_flattened() {
        b"AuthenticAMD" | b"HygonGenuine" => 1 << 1,
        _ => 0,
    }
}

/// What the host says there, zeroes if nothing.
fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    let mut entries = cpuid.as_slice().iter();
    let found = entries.find(|entry| entry.function == function && entry.index == index);
    found.copied().unwrap_or_else(|| leaf(function))
}

fn register(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

#[cfg(test)]
mod tests;
