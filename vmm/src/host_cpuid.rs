//! What CPUID may say on this host, as KVM tells it and as a spec has it.
//!
//! Where the host itself is a virtual machine it takes KVM long to tell, since each CPUID
//! leaves that machine, and the processor does nothing else meanwhile. So an agent asks
//! before it starts a microVM. The answer holds as long as KVM's modules and the microcode
//! are the same.

use std::os::fd::{AsFd, BorrowedFd};

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};

use crate::kvm::vm::{NotKvm, VmError, open, supported_cpuid};
use crate::spec::CpuidSpec;

/// The most entries there may be: three are added
/// ([`for_vcpu`](crate::arch::x86_64::cpuid::for_vcpu)), and the kernel takes 256
/// (`KVM_SET_CPUID2`).
pub const MAX_ENTRIES: usize = KVM_MAX_CPUID_ENTRIES - 3;

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum HostCpuidError {
    /// The descriptor cannot be used twice.
    #[error("cannot duplicate the descriptor of /dev/kvm")]
    Duplicate(#[source] std::io::Error),
    /// It is another device's.
    #[error("it is another device")]
    NotKvm(#[from] NotKvm),
    /// KVM does not tell.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// Asks the `/dev/kvm` that is open as `device` (`KVM_GET_SUPPORTED_CPUID`), for
/// [`VmSpec::supported_cpuid`](crate::spec::VmSpec::supported_cpuid).
pub fn ask(device: BorrowedFd<'_>) -> Result<Vec<CpuidSpec>, HostCpuidError> {
    let device = device.as_fd().try_clone_to_owned();
    let device = open(device.map_err(HostCpuidError::Duplicate)?)?;
    Ok(to_spec(&supported_cpuid(&device)?))
}

fn to_spec(cpuid: &CpuId) -> Vec<CpuidSpec> {
    let entries = cpuid.as_slice().iter().map(|entry| CpuidSpec {
        leaf: entry.function,
        subleaf: (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    });
    entries.collect()
}

/// As the kernel takes it; `None`: too many.
pub(crate) fn from_spec(entries: &[CpuidSpec]) -> Option<CpuId> {
    if entries.len() > MAX_ENTRIES {
        return None;
    }
    let entries = entries.iter().map(|entry| kvm_cpuid_entry2 {
        function: entry.leaf,
        index: entry.subleaf.unwrap_or(0),
        flags: entry.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        ..Default::default()
    });
    CpuId::from_entries(&entries.collect::<Vec<_>>()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_entry() -> impl Strategy<Value = kvm_cpuid_entry2> {
        let subleaf = proptest::option::of(any::<u32>());
        (any::<u32>(), subleaf, any::<[u32; 4]>()).prop_map(|(function, subleaf, registers)| {
            let [eax, ebx, ecx, edx] = registers;
            kvm_cpuid_entry2 {
                function,
                index: subleaf.unwrap_or(0),
                flags: subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        })
    }

    proptest! {
        #[test]
        fn what_kvm_says_is_the_same_after_a_spec(
            entries in proptest::collection::vec(any_entry(), 0..=MAX_ENTRIES)
        ) {
            let cpuid = CpuId::from_entries(&entries).unwrap();
            let text = serde_json::to_string(&to_spec(&cpuid)).unwrap();
            let spec: Vec<CpuidSpec> = serde_json::from_str(&text).unwrap();
            let read = from_spec(&spec).unwrap();
            prop_assert_eq!(read.as_slice(), entries.as_slice());
        }
    }

    #[test]
    fn more_than_the_kernel_takes_is_too_many() {
        let cpuid = CpuId::from_entries(&[kvm_cpuid_entry2::default(); MAX_ENTRIES]).unwrap();
        let mut entries = to_spec(&cpuid);
        assert!(from_spec(&entries).is_some());
        entries.push(entries[0]);
        assert!(from_spec(&entries).is_none());
    }
}
