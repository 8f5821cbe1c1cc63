//! What a guest reads with CPUID under a template.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

use vmm::arch::x86_64::cpuid::template::TEMPLATES;
use vmm::host_cpuid;
use vmm::spec::CpuidSpec;

use crate::machine::{HOST_FAILURE, POWERED_OFF, WRONG_USE, probe};

/// Leaves that tell of the host's caches.
const CACHES: [u32; 4] = [2, 4, 0x8000_0005, 0x8000_0006];

/// A leaf and subleaf, and what the guest read there.
type Table = BTreeMap<(u32, u32), [u32; 4]>;

fn parse(console: &str) -> Table {
    let lines = console.lines().map(|line| {
        let numbers: Vec<u32> = line
            .split([' ', '.'])
            .map(|number| u32::from_str_radix(number, 16).unwrap_or_else(|_| panic!("{line}")))
            .collect();
        match numbers[..] {
            [leaf, subleaf, a, b, c, d] => ((leaf, subleaf), [a, b, c, d]),
            _ => panic!("{line}"),
        }
    });
    lines
        .filter(|((leaf, _), _)| !CACHES.contains(leaf))
        .collect()
}

/// The table of `x86-64-v1.1` for one vCPU, with the host's maker and signatures, which
/// `told` has.
fn baseline(told: &Table) -> Table {
    let maker = told[&(0, 0)];
    let amd = maker[1] == u32::from_le_bytes(*b"Auth");
    let brand = |part: &[u8; 16]| {
        let words: Vec<_> = part
            .chunks(4)
            .map(|w| <[u8; 4]>::try_from(w).unwrap())
            .collect();
        std::array::from_fn(|index| u32::from_le_bytes(words[index]))
    };
    let extended_maker = match amd {
        true => [maker[1], maker[2], maker[3]],
        false => [0; 3],
    };
    BTreeMap::from([
        ((0, 0), [0xd, maker[1], maker[2], maker[3]]),
        (
            (1, 0),
            [told[&(1, 0)][0], 0x1_0800, 0x8120_0000, 0x078b_fbfd],
        ),
        ((6, 0), [4, 0, 0, 0]),
        ((0xb, 0), [0, 1, 0x100, 0]),
        ((0xb, 1), [0, 1, 0x201, 0]),
        (
            (0x4000_0000, 0),
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        ((0x4000_0001, 0), [0x0100_2aeb, 0, 0, 0]),
        (
            (0x8000_0000, 0),
            [
                0x8000_0008,
                extended_maker[0],
                extended_maker[1],
                extended_maker[2],
            ],
        ),
        (
            (0x8000_0001, 0),
            [
                told[&(0x8000_0001, 0)][0],
                0,
                u32::from(amd) << 1,
                0x2010_0800,
            ],
        ),
        ((0x8000_0002, 0), brand(b"mote x86-64-v1.1")),
        ((0x8000_0008, 0), [0x3028, 0, 0, 0]),
    ])
}

/// Leaves of what programs of the guest can use without asking the kernel.
const OF_PROGRAMS: [u32; 3] = [1, 7, 0xd];

/// Whether KVM here does what it is told: one that only pretends to be virtualization in
/// hardware shows a guest, whatever it is told, what its programs can use.
fn kvm_obeys() -> Option<bool> {
    let told = parse(&probe("cpuid")?.run().console);
    let kvm = kvm_ioctls::Kvm::new().ok()?;
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .ok()?;
    let mut entries = supported.as_slice().iter();
    let supported = entries
        .find(|entry| entry.function == 7)
        .map_or(0, |e| e.ebx);
    let told = told.get(&(7, 0)).map_or(0, |registers| registers[1]);
    Some(told & !supported == 0)
}

#[test]
fn a_guest_reads_exactly_what_the_template_holds() {
    let Some(mut machine) = probe("cpuid") else {
        return;
    };
    machine.spec.cpu_template = Some("x86-64-v1.1".to_owned());
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
    let mut told = parse(&outcome.console);
    let mut expected = baseline(&told);
    if kvm_obeys() == Some(false) {
        let line = "skipped: leaves 1, 7 and 0xd of a template: KVM here shows its own\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        for table in [&mut told, &mut expected] {
            table.retain(|(leaf, _), _| !OF_PROGRAMS.contains(leaf));
        }
    }
    assert_eq!(told, expected);
}

#[test]
fn each_template_is_kept_or_refused_by_what_is_missing() {
    for template in &TEMPLATES {
        let Some(mut machine) = probe("cpuid") else {
            return;
        };
        machine.spec.cpu_template = Some(template.name().to_owned());
        let outcome = machine.run();
        if outcome.code != Some(POWERED_OFF) {
            let name = format!("cpu_template {:?} promises", template.name());
            outcome.expect_error(HOST_FAILURE, &[&name, "does not have: "]);
            continue;
        }
        let told = parse(&outcome.console);
        for feature in template.features() {
            let registers = told[&(feature.leaf, feature.subleaf)];
            let told = registers[feature.register as usize] & 1 << feature.bit;
            assert_ne!(told, 0, "{feature:?} of {}", template.name());
        }
    }
}

#[test]
fn a_guest_reads_the_same_whether_the_agent_or_the_vmm_has_asked_kvm() {
    let told = |ask: bool| {
        let mut machine = probe("cpuid")?;
        if ask {
            let kvm = File::options().read(true).write(true).open("/dev/kvm");
            machine.spec.supported_cpuid = Some(host_cpuid::ask(kvm.unwrap().as_fd()).unwrap());
        }
        let outcome = machine.run();
        assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
        Some(parse(&outcome.console))
    };
    assert_eq!(told(true), told(false));
}

#[test]
fn what_an_agent_says_of_cpuid_is_what_the_guest_reads() {
    let Some(mut machine) = probe("cpuid") else {
        return;
    };
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let mut entries = host_cpuid::ask(kvm.unwrap().as_fd()).unwrap();
    let brand = entries.iter_mut().find(|entry| entry.leaf == 0x8000_0002);
    brand.unwrap().eax = u32::from_le_bytes(*b"mote");
    machine.spec.supported_cpuid = Some(entries);
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
    let told = parse(&outcome.console)[&(0x8000_0002, 0)];
    assert_eq!(told[0], u32::from_le_bytes(*b"mote"));
}

#[test]
fn more_cpuid_entries_than_the_kernel_takes_are_refused() {
    let Some(mut machine) = probe("hello") else {
        return;
    };
    let entry = CpuidSpec {
        leaf: 0,
        subleaf: None,
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    machine.spec.supported_cpuid = Some(vec![entry; host_cpuid::MAX_ENTRIES + 1]);
    let outcome = machine.run();
    outcome.expect_error(
        WRONG_USE,
        &[
            "the number of supported_cpuid entries is 254",
            "at most 253",
        ],
    );
}

#[test]
fn every_vcpu_starts_under_a_template() {
    let Some(machine) = probe("processors count=4") else {
        return;
    };
    let mut machine = machine.vcpus(4);
    machine.spec.cpu_template = Some("x86-64-v1.1".to_owned());
    let outcome = machine.run();
    assert_eq!(outcome.code, Some(POWERED_OFF), "{outcome:#?}");
}

#[test]
fn a_name_of_no_template_is_refused_with_those_there_are() {
    for name in ["", "x86-64-v1", "x86-64-v2.2", "T2"] {
        let Some(mut machine) = probe("hello") else {
            return;
        };
        machine.spec.cpu_template = Some(name.to_owned());
        let known = ["cpu_template", "x86-64-v1.1, x86-64-v2.1, x86-64-v3.1"];
        machine.run().expect_error(WRONG_USE, &known);
    }
}

#[test]
fn memory_that_a_templates_cpu_cannot_address_is_refused() {
    let Some(machine) = probe("hello") else {
        return;
    };
    let mut machine = machine.memory_mib(1 << 20);
    machine.spec.cpu_template = Some("x86-64-v1.1".to_owned());
    machine
        .run()
        .expect_error(WRONG_USE, &["end of memory", "2^40"]);
}
