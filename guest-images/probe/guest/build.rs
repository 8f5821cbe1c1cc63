//! Gives each guest its linker script.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    for (name, script) in [
        ("probe", "probe.ld"),
        ("first-instruction", "first_instruction.ld"),
        ("exits", "first_instruction.ld"),
    ] {
        println!("cargo::rustc-link-arg-bin={name}=-T{directory}/{script}");
        println!("cargo::rerun-if-changed={script}");
    }
}
