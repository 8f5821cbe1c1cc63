//! What the guest reads with CPUID: what KVM can give, corrected for the number
//! of vCPUs and for each vCPU's place among them. A [`template`] makes it the same on
//! every host.

pub mod features;
pub mod template;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// EBX[31:24] is the APIC id, ECX[31] says "hypervisor", ECX[24] the TSC
/// deadline timer, EDX[28] that EBX[23:16] counts logical processors.
const LEAF_FEATURES: u32 = 0x1;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
/// Intel's cache parameters: EAX[31:26] cores in the package, EAX[25:14]
/// threads that share the cache.
const LEAF_CACHES: u32 = 0x4;
/// Extended topology: one subleaf a level, EDX the x2APIC id.
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
/// AMD: ECX[7:0] cores less one, ECX[15:12] bits of the core's id.
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
/// AMD's cache parameters: EAX[25:14] threads that share the cache.
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
/// AMD: EAX the extended APIC id, EBX[7:0] the core's id.
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const LEVEL_INVALID: u32 = 0;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Turns what the host supports (`KVM_GET_SUPPORTED_CPUID`), or a template, into what vCPU
/// `index` of `count` reads: one package, each vCPU a core with one thread.
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    cpuid.retain(|entry| !matches!(entry.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2));
    for entry in cpuid.as_mut_slice() {
        correct(entry, index, count);
    }
    for (level, level_type) in [LEVEL_THREAD, LEVEL_CORE, LEVEL_INVALID].iter().enumerate() {
        // Only a list at the wrapper's limit refuses ([`crate::host_cpuid::MAX_ENTRIES`]).
        let _ = cpuid.push(topology(level as u32, *level_type, index, count));
    }
    cpuid
}

/// Bits needed to number `count` cores.
fn id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

fn correct(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    let last = u32::from(count) - 1;
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = (entry.ebx & 0xffff) | u32::from(index) << 24 | u32::from(count) << 16;
            entry.ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE | ECX_X2APIC;
            if count > 1 {
                entry.edx |= EDX_HYPER_THREADING;
            } else {
                entry.edx &= !EDX_HYPER_THREADING;
            }
        }
        LEAF_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | sharing << 14 | last << 26;
        }
        LEAF_AMD_SIZES => entry.ecx = id_bits(count) << 12 | last,
        LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | sharing << 14;
        }
        LEAF_AMD_TOPOLOGY => {
            entry.eax = u32::from(index);
            entry.ebx = u32::from(index);
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn topology(level: u32, level_type: u32, index: u8, count: u8) -> kvm_cpuid_entry2 {
    let (shift, processors) = match level_type {
        LEVEL_THREAD => (0, 1),
        LEVEL_CORE => (id_bits(count), u32::from(count)),
        _ => (0, 0),
    };
    kvm_cpuid_entry2 {
        function: LEAF_TOPOLOGY,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: level_type << 8 | level,
        edx: u32::from(index),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ..Default::default()
        }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_reads_its_own_apic_id_wherever_it_looks() {
        let supported =
            CpuId::from_entries(&[leaf(1), leaf(0xb), leaf(0x1f), leaf(0x8000_001e)]).unwrap();
        let cpuid = for_vcpu(&supported, 5, 6);
        assert_eq!(find(&cpuid, 1, 0).ebx >> 24, 5);
        assert_eq!(find(&cpuid, 0xb, 0).edx, 5);
        assert_eq!(find(&cpuid, 0xb, 1).edx, 5);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 5);
        assert!(!cpuid.as_slice().iter().any(|e| e.function == 0x1f));
    }

    #[test]
    fn six_cores_take_three_bits_of_the_apic_id() {
        let supported = CpuId::from_entries(&[leaf(0x8000_0008)]).unwrap();
        let cpuid = for_vcpu(&supported, 0, 6);
        assert_eq!(find(&cpuid, 0xb, 1).eax, 3);
        assert_eq!(find(&cpuid, 0xb, 1).ebx, 6);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 3 << 12 | 5);
    }
}
