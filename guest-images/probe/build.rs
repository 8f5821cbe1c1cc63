//! Builds the guests of `guest/`, a workspace of its own: they have no operating
//! system under them, so they want other flags than everything else here, and a
//! build or a lint of this workspace must not touch them.

use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What Cargo and Clippy tell the compiler of this workspace, by environment.
const OURS_ALONE: &[&str] = &[
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=src/pattern.rs");
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let target_dir = Path::new(&variable("OUT_DIR")).join("target");
    let mut cargo = Command::new(variable("CARGO"));
    // The directory decides which `.cargo/config.toml` is read.
    cargo
        .current_dir(manifest_dir.join("guest"))
        .args(["build", "--release", "--locked", "--quiet", "--target-dir"])
        .arg(&target_dir);
    for name in OURS_ALONE {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "the probe guests do not build");
    let built = target_dir.join(TARGET).join("release");
    println!("cargo::rustc-env=PROBE_GUESTS={}", built.display());
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
