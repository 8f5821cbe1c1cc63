//! Compiles the system call policies of `seccomp/` to BPF programs, which
//! `src/seccomp.rs` includes. At run time there is nothing left to parse.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use seccompiler::{BpfProgram, TargetArch};

/// One policy file for each kind of thread.
const POLICIES: [&str; 2] = ["event_loop", "vcpu"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the architecture");
    let architecture =
        TargetArch::try_from(architecture.as_str()).expect("mote-vmm is for x86_64 and aarch64");
    for name in POLICIES {
        let source = Path::new("seccomp").join(name).with_extension("json");
        println!("cargo::rerun-if-changed={}", source.display());
        let program = bpf_optimizer::optimize(&compile(&source, name, architecture));
        let bytes: Vec<u8> = program
            .iter()
            .flat_map(|instruction| {
                let [c0, c1] = instruction.code.to_ne_bytes();
                let [k0, k1, k2, k3] = instruction.k.to_ne_bytes();
                [c0, c1, instruction.jt, instruction.jf, k0, k1, k2, k3]
            })
            .collect();
        let target = out.join(name).with_extension("bpf");
        fs::write(&target, bytes)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", target.display()));
    }
}

fn compile(source: &Path, name: &str, architecture: TargetArch) -> BpfProgram {
    let file = File::open(source)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", source.display()));
    let mut programs: HashMap<String, BpfProgram> =
        seccompiler::compile_from_json(file, architecture)
            .unwrap_or_else(|error| panic!("{} is no policy: {error}", source.display()));
    programs
        .remove(name)
        .unwrap_or_else(|| panic!("{} has no thread called {name}", source.display()))
}
