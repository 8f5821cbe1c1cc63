//! CPU templates, as Linux sees them.

use std::collections::BTreeSet;

use e2e::{finish, image, mote, mote_in_background_with_input};
use serde_json::Value;
use std::io::{BufRead, BufReader};

/// What `x86-64-v1.1` holds of the CPU, as `/proc/cpuinfo` names it, and what KVM gives
/// everywhere.
const BASELINE: &str = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 \
                        clflush mmx fxsr sse sse2 syscall nx lm x2apic tsc_deadline_timer \
                        hypervisor";
/// Features that Linux makes up from what it knows of the CPU's maker and model.
const OF_LINUX: &str = "constant_tsc rep_good nopl xtopology nonstop_tsc cpuid tsc_known_freq \
                        extd_apicid cmp_legacy vmmcall ht up arat \
                        lfence_rdtsc mfence_rdtsc 3dnowprefetch";

#[test]
fn linux_sees_the_features_of_the_template_and_no_other() {
    let script = "grep -m1 '^flags' /proc/cpuinfo; grep -m1 '^model name' /proc/cpuinfo; echo; cat";
    let arguments = [
        "run",
        "-i",
        "--name",
        "baseline",
        "--cpu-template",
        "x86-64-v1.1",
    ];
    let image = image();
    let command = [&image, "/bin/sh", "-c", script];
    let mut run = mote_in_background_with_input(arguments.into_iter().chain(command));
    let mut output = BufReader::new(run.stdout.take().unwrap()).lines();
    let mut line = || output.next().unwrap().unwrap();
    let (flags, model) = (line(), line());
    let told = mote(["inspect", "baseline", "--format", "json"]).expect(0);
    let told: Value = serde_json::from_str(&told.text()).expect("JSON");
    assert_eq!(told["machine"]["cpu_template"], "x86-64-v1.1");
    drop(run.stdin.take());
    finish(run).expect(0);

    assert!(model.ends_with(": mote x86-64-v1.1"), "{model}");
    let (_, flags) = flags.split_once(": ").expect("flags");
    let flags: BTreeSet<&str> = flags.split_whitespace().collect();
    for feature in BASELINE.split_whitespace() {
        assert!(flags.contains(feature), "no {feature}: {flags:?}");
    }
    let known: BTreeSet<&str> = BASELINE
        .split_whitespace()
        .chain(OF_LINUX.split_whitespace())
        .collect();
    let others: Vec<_> = flags.difference(&known).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn a_template_is_kept_or_refused_by_what_this_host_lacks() {
    for (template, feature) in [("x86-64-v2.1", "cx16"), ("x86-64-v3.1", "avx2")] {
        let script = format!("grep -qw {feature} /proc/cpuinfo && echo there");
        let image = image();
        let run = mote([
            "run",
            "--cpu-template",
            template,
            &image,
            "/bin/sh",
            "-c",
            &script,
        ]);
        match run.code {
            0 => assert_eq!(run.text(), "there"),
            _ => {
                let errors = run.expect(125).errors();
                let promise = format!("cpu_template {template:?} promises");
                assert!(errors.contains(&promise), "{errors}");
            }
        }
    }
}

#[test]
fn a_name_of_no_template_is_refused_with_those_there_are() {
    let run = mote(["run", "--cpu-template", "T2", &image()]).expect(125);
    assert!(run.errors().contains("x86-64-v3.1"), "{}", run.errors());
}
