//! Guests that do not come up: what is told, and that nothing hangs.

use std::fs;
use std::path::Path;

use e2e::{image, installed, mote, mote_with_assets};
use tempfile::TempDir;

/// A directory with both, to be spoilt.
fn assets() -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    for name in ["vmlinux", "initrd"] {
        fs::copy(installed(name), directory.path().join(name)).expect("mote is installed");
    }
    directory
}

/// What `mote run` with these says, which must fail.
#[track_caller]
fn refusal(assets: &TempDir) -> String {
    let run = mote_with_assets(assets.path(), ["run", &image(), "true"]);
    run.expect(125).errors()
}

/// Cuts a file in two and keeps the first half.
fn cut(path: &Path) {
    let content = fs::read(path).expect("the file is there");
    fs::write(path, &content[..content.len() / 2]).expect("there is room");
}

/// Fills what the kernel executes with UD2, which no kernel handles before it has set
/// up its interrupts (ELF-64, program headers; Intel SDM volume 2, "UD").
fn spoil_code(path: &Path) {
    let mut kernel = fs::read(path).expect("the file is there");
    let number = |kernel: &[u8], at: usize, bytes: usize| {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(&kernel[at..at + bytes]);
        u64::from_le_bytes(number) as usize
    };
    let (table, entry_bytes, entries) = (
        number(&kernel, 0x20, 8),
        number(&kernel, 0x36, 2),
        number(&kernel, 0x38, 2),
    );
    let mut spoilt = 0;
    for header in (0..entries).map(|index| table + index * entry_bytes) {
        let (kind, flags) = (number(&kernel, header, 4), number(&kernel, header + 4, 4));
        // PT_LOAD, PF_X.
        if kind != 1 || flags & 1 == 0 {
            continue;
        }
        let (offset, length) = (
            number(&kernel, header + 8, 8),
            number(&kernel, header + 0x20, 8),
        );
        for pair in kernel[offset..offset + length].chunks_exact_mut(2) {
            pair.copy_from_slice(&[0x0f, 0x0b]);
        }
        spoilt += 1;
    }
    assert!(spoilt > 0, "the kernel has code");
    fs::write(path, kernel).expect("there is room");
}

#[test]
fn a_kernel_whose_code_is_garbage_is_told_as_a_triple_fault() {
    let assets = assets();
    let kernel = assets.path().join("vmlinux");
    spoil_code(&kernel);
    let kernel = kernel.to_str().expect("the path is text");
    let run = mote(["run", "--kernel", kernel, &image(), "true"]).expect(125);
    let errors = run.errors();
    assert!(errors.contains("the guest crashed"), "{errors}");
    assert!(errors.contains("triple fault"), "{errors}");
    assert!(errors.contains("the guest kernel was booting"), "{errors}");
}

#[test]
fn a_kernel_that_is_cut_is_refused_before_anything_runs() {
    let assets = assets();
    cut(&assets.path().join("vmlinux"));
    let errors = refusal(&assets);
    assert!(errors.contains("kernel"), "{errors}");
    assert!(errors.contains("while the VM was being built"), "{errors}");
}

#[test]
fn a_kernel_without_an_init_is_told_with_its_panic() {
    let assets = assets();
    cut(&assets.path().join("initrd"));
    let errors = refusal(&assets);
    assert!(errors.contains("the guest reset itself"), "{errors}");
    assert!(errors.contains("the guest kernel was booting"), "{errors}");
    assert!(errors.contains("Kernel panic"), "{errors}");
}

#[test]
fn an_initrd_of_garbage_is_told_with_the_panic() {
    let assets = assets();
    fs::write(assets.path().join("initrd"), [0xa5; 10_000]).expect("there is room");
    let errors = refusal(&assets);
    assert!(errors.contains("Kernel panic"), "{errors}");
}

#[test]
fn an_initrd_that_is_not_there_is_told_with_where_it_was_looked_for() {
    let assets = assets();
    fs::remove_file(assets.path().join("initrd")).expect("it was there");
    let errors = refusal(&assets);
    let place = assets.path().to_str().expect("the path is text");
    assert!(errors.contains("initrd was not found"), "{errors}");
    assert!(errors.contains(place), "{errors}");
}
