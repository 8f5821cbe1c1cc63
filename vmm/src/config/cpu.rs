//! CPU templates: names that are some, and memory that such a CPU can address. And no more
//! CPUID entries than the kernel takes.

use kvm_bindings::CpuId;

use super::error::{ConfigError, in_range};
use crate::arch::layout;
use crate::arch::x86_64::cpuid::template::{PHYSICAL_BITS, Template};
use crate::host_cpuid;
use crate::spec::{CpuidSpec, VmSpec};

/// The template that `spec` names.
pub fn template(spec: &VmSpec) -> Result<Option<&'static Template>, ConfigError> {
    let Some(name) = &spec.cpu_template else {
        return Ok(None);
    };
    let Some(template) = Template::named(name) else {
        return Err(ConfigError::Name {
            field: "cpu_template",
            found: name.clone(),
            known: Template::names(),
        });
    };
    let start = layout::pmem_start(spec.memory_bytes).0;
    let end = spec.pmem.iter().fold(start, |end, pmem| {
        let next = end.saturating_add(pmem.length_bytes);
        next.checked_next_multiple_of(layout::PMEM_ALIGNMENT)
            .unwrap_or(u64::MAX)
    });
    in_range(
        "the end of memory and pmem",
        end,
        ..=1 << PHYSICAL_BITS,
        format!("at most 2^{PHYSICAL_BITS} with a cpu_template"),
    )?;
    Ok(Some(template))
}

/// `supported_cpuid`, if the agent has asked.
pub fn supported(entries: Option<&[CpuidSpec]>) -> Result<Option<CpuId>, ConfigError> {
    let Some(entries) = entries else {
        return Ok(None);
    };
    match host_cpuid::from_spec(entries) {
        Some(cpuid) => Ok(Some(cpuid)),
        None => Err(ConfigError::Range {
            field: "the number of supported_cpuid entries".to_owned(),
            found: entries.len() as u64,
            wanted: format!("at most {}", host_cpuid::MAX_ENTRIES),
        }),
    }
}
