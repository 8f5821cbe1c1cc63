//! Templates on hosts that were made up.

use proptest::prelude::*;

use super::super::for_vcpu;
use super::*;

const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];

/// What a host says in the leaves that have other than features, and `extra` bits
/// anywhere.
fn host(maker: [u32; 3], extra: &[kvm_cpuid_entry2]) -> CpuId {
    let [ebx, ecx, edx] = maker;
    let with_maker = |function, eax| kvm_cpuid_entry2 {
        eax,
        ebx,
        ecx,
        edx,
        ..leaf(function)
    };
    let mut entries = vec![
        with_maker(0, 0x20),
        with_maker(0x8000_0000, 0x8000_0022),
        kvm_cpuid_entry2 {
            eax: 0x3030,
            ..leaf(LEAF_AMD_SIZES)
        },
        kvm_cpuid_entry2 {
            eax: 0x207,
            ebx: 0x988,
            ecx: 0x988,
            ..subleaf(LEAF_STATE, 0)
        },
        kvm_cpuid_entry2 {
            eax: 256,
            ebx: 576,
            ..subleaf(LEAF_STATE, AVX_STATE)
        },
    ];
    for more in extra {
        let here = |e: &&mut kvm_cpuid_entry2| (e.function, e.index) == (more.function, more.index);
        match entries.iter_mut().find(here) {
            Some(entry) => {
                entry.eax |= more.eax;
                entry.ebx |= more.ebx;
                entry.ecx |= more.ecx;
                entry.edx |= more.edx;
            }
            None => entries.push(*more),
        }
    }
    CpuId::from_entries(&entries).unwrap()
}

/// The bit of `feature` alone.
fn bit(feature: &Feature) -> kvm_cpuid_entry2 {
    let mut entry = subleaf(feature.leaf, feature.subleaf);
    let bit = 1 << feature.bit;
    match feature.register {
        Register::Eax => entry.eax = bit,
        Register::Ebx => entry.ebx = bit,
        Register::Ecx => entry.ecx = bit,
        Register::Edx => entry.edx = bit,
    }
    entry
}

/// Just what `template` promises.
fn least(template: &Template) -> Vec<kvm_cpuid_entry2> {
    template.features().map(bit).collect()
}

/// Leaves where a host may say anything, all but those of addresses and state.
fn any_leaf() -> impl Strategy<Value = kvm_cpuid_entry2> {
    let place = prop_oneof![
        Just((1, 0)),
        Just((2, 0)),
        (0_u32..5).prop_map(|index| (4, index)),
        Just((5, 0)),
        Just((6, 0)),
        (0_u32..3).prop_map(|index| (7, index)),
        Just((0xa, 0)),
        Just((0xd, 1)),
        (3_u32..20).prop_map(|index| (0xd, index)),
        (0x10_u32..0x20).prop_map(|leaf| (leaf, 0)),
        (0x4000_0001_u32..0x4000_0011).prop_map(|leaf| (leaf, 0)),
        (0x8000_0001_u32..0x8000_0008).prop_map(|leaf| (leaf, 0)),
        Just((0x8000_001d, 0)),
        Just((0x8000_0021, 0)),
    ];
    (place, any::<[u32; 4]>()).prop_map(|((function, index), [eax, ebx, ecx, edx])| {
        kvm_cpuid_entry2 {
            eax,
            ebx,
            ecx,
            edx,
            ..subleaf(function, index)
        }
    })
}

/// Hosts that have all of a template, or almost, and more.
fn any_host(template: &'static Template) -> impl Strategy<Value = CpuId> {
    let features = template.features().count();
    let without = proptest::option::weighted(0.3, 0..features);
    let extra = proptest::collection::vec(any_leaf(), 0..40);
    (any::<bool>(), without, extra).prop_map(move |(amd, without, extra)| {
        let promised = least(template);
        let promised = promised.into_iter().enumerate();
        let kept = promised.filter(|(index, _)| Some(*index) != without);
        let mut entries: Vec<_> = kept.map(|(_, entry)| entry).collect();
        entries.extend(extra);
        host(if amd { AMD } else { INTEL }, &entries)
    })
}

fn any_template() -> impl Strategy<Value = &'static Template> {
    (0..TEMPLATES.len()).prop_map(|index| &TEMPLATES[index])
}

/// All that a guest reads but what is the host's: maker, signature, caches, and how
/// AMD's CPUs count.
fn features_of(cpuid: &CpuId) -> Vec<(u32, u32, [u32; 4])> {
    let entries = cpuid.as_slice().iter();
    let mut told: Vec<_> = entries
        .filter(|e| !matches!(e.function, 2 | 4 | LEAF_AMD_L1 | LEAF_AMD_L2))
        .map(|e| {
            let registers = match e.function {
                0 | LEAF_EXTENDED => [e.eax, 0, 0, 0],
                1 => [0, e.ebx, e.ecx, e.edx],
                LEAF_EXTENDED_FEATURES => [0, e.ebx, e.ecx & !2, e.edx],
                _ => [e.eax, e.ebx, e.ecx, e.edx],
            };
            (e.function, e.index, registers)
        })
        .collect();
    told.sort_unstable();
    told
}

proptest! {
    #[test]
    fn two_hosts_give_the_same_features_or_are_refused(
        (template, one, other) in any_template()
            .prop_flat_map(|template| (Just(template), any_host(template), any_host(template))),
        vcpus in 1_u8..=32,
    ) {
        let told = |host: &CpuId| {
            let cpuid = template.apply(host).ok()?;
            Some(features_of(&for_vcpu(&cpuid, vcpus - 1, vcpus)))
        };
        let model = told(&host(INTEL, &least(template)));
        prop_assert!(model.is_some());
        for host in [one, other] {
            let has_all = template.features().all(|feature| {
                let entry = find(&host, feature.leaf, feature.subleaf);
                register(&entry, feature.register) & 1 << feature.bit != 0
            });
            let told = told(&host);
            prop_assert_eq!(told.is_some(), has_all);
            prop_assert!(told.is_none() || told == model);
        }
    }

    #[test]
    fn no_host_breaks_a_template(
        template in any_template(),
        leaves in proptest::collection::vec(any_leaf(), 0..60),
    ) {
        let cpuid = CpuId::from_entries(&leaves).unwrap();
        let _ = template.apply(&cpuid);
    }
}

#[test]
fn a_host_without_a_feature_is_refused_by_the_names_of_both() {
    let template = Template::named("x86-64-v3.1").unwrap();
    for feature in template.features() {
        let others = template.features().filter(|other| *other != feature);
        let host = host(AMD, &others.map(bit).collect::<Vec<_>>());
        let error = template.apply(&host).unwrap_err();
        assert_eq!(error.missing, feature.name);
        assert!(error.to_string().contains("\"x86-64-v3.1\""));
    }
}

#[test]
fn a_host_of_too_few_address_bits_is_refused() {
    let template = &TEMPLATES[0];
    let mut host = host(AMD, &least(template));
    for entry in host.as_mut_slice() {
        if entry.function == LEAF_AMD_SIZES {
            entry.eax = 0x3027;
        }
    }
    let error = template.apply(&host).unwrap_err();
    assert_eq!(error.missing, "addresses of 40 bits");
}

#[test]
fn the_size_of_the_state_is_that_of_the_components_that_are_left() {
    let template = Template::named("x86-64-v3.1").unwrap();
    let cpuid = template.apply(&host(AMD, &least(template))).unwrap();
    let state = |index| find(&cpuid, LEAF_STATE, index);
    assert_eq!((state(0).eax, state(0).ebx, state(0).ecx), (7, 576, 832));
    // XSAVEOPT, and neither XSAVEC nor XSAVES.
    assert_eq!((state(1).eax, state(1).ecx, state(1).edx), (1, 0, 0));
    assert_eq!((state(2).eax, state(2).ebx), (256, 576));
    assert_eq!(state(9).eax, 0);
    // A host whose AVX lies elsewhere, which no CPU's does.
    let mut elsewhere = host(AMD, &least(template));
    for entry in elsewhere.as_mut_slice() {
        if (entry.function, entry.index) == (LEAF_STATE, AVX_STATE) {
            entry.ebx = 640;
        }
    }
    let error = template.apply(&elsewhere).unwrap_err();
    assert!(error.missing.contains("AVX"), "{error}");
    // Without XSAVE there is none.
    let template = Template::named("x86-64-v2.1").unwrap();
    let cpuid = template.apply(&host(AMD, &least(template))).unwrap();
    assert_eq!(find(&cpuid, LEAF_STATE, 0).eax, 0);
}

#[test]
fn each_level_holds_the_one_before_it_and_each_feature_once() {
    for pair in TEMPLATES.windows(2) {
        assert!(pair[0].features().all(|feature| pair[1].has(feature)));
    }
    for template in &TEMPLATES {
        let mut places: Vec<_> = template
            .features()
            .map(|f| (f.leaf, f.subleaf, f.register as u32, f.bit))
            .collect();
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), all, "{}", template.name());
    }
}

/// A released template never changes: whoever changes one of these makes a new
/// revision instead.
#[test]
fn released_templates_are_what_they_were() {
    let masks = |template: &Template| {
        [
            template.mask(1, 0, Register::Ecx),
            template.mask(1, 0, Register::Edx),
            template.mask(7, 0, Register::Ebx),
            template.mask(0x8000_0001, 0, Register::Ecx),
            template.mask(0x8000_0001, 0, Register::Edx),
            template.mask(0x8000_0008, 0, Register::Ebx),
            template.mask(0x4000_0001, 0, Register::Eax),
        ]
    };
    let told: Vec<_> = TEMPLATES.iter().map(|t| (t.name(), masks(t))).collect();
    const KVM: u32 = 0x0100_2aeb;
    assert_eq!(
        told,
        [
            ("x86-64-v1.1", [0, 0x078b_fbfd, 0, 0, 0x2010_0800, 0, KVM]),
            (
                "x86-64-v2.1",
                [0x0098_2201, 0x078b_fbfd, 0, 1, 0x2010_0800, 0, KVM]
            ),
            (
                "x86-64-v3.1",
                [
                    0x76d8_3203,
                    0x078b_fbfd,
                    0x0000_01a9,
                    0x21,
                    0x2c10_0800,
                    0x0100_d000,
                    KVM
                ]
            ),
        ]
    );
}

#[test]
fn the_brand_names_the_template_and_not_the_host() {
    let template = Template::named("x86-64-v1.1").unwrap();
    let cpuid = template.apply(&host(INTEL, &least(template))).unwrap();
    let text: Vec<u8> = (0..3)
        .flat_map(|third| {
            let entry = find(&cpuid, LEAF_BRAND + third, 0);
            [entry.eax, entry.ebx, entry.ecx, entry.edx]
        })
        .flat_map(u32::to_le_bytes)
        .collect();
    assert_eq!(text[..16], *b"mote x86-64-v1.1");
    assert_eq!(text[16..], [0; 32]);
}
