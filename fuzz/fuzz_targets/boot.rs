//! Kernels and initrds, whatever they are. The first four bytes say how long the
//! initrd is, which comes last, and how long the command line; the kernel is between.
#![no_main]

use std::fs::File;
use std::sync::OnceLock;

use fuzz::{files, memory};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use vmm::boot;
use vmm::config::boot::BootConfig;

/// Files to be filled anew; each `File` made of one shares its position.
fn file(place: &'static OnceLock<File>, content: &[u8]) -> File {
    let file = place.get_or_init(files::empty);
    files::fill(file, content);
    file.try_clone().expect("one more descriptor")
}

fuzz_target!(|data: &[u8]| {
    static KERNEL: OnceLock<File> = OnceLock::new();
    static INITRD: OnceLock<File> = OnceLock::new();
    let Some((head, rest)) = data.split_first_chunk::<4>() else {
        return;
    };
    let initrd = usize::from(u16::from_le_bytes([head[0], head[1]])).min(rest.len());
    let (rest, initrd) = rest.split_at(rest.len() - initrd);
    let memory = memory::for_kernel();
    let mut kernel = file(&KERNEL, rest);
    let Ok(loaded) = boot::load_kernel(&memory, &mut kernel) else {
        return;
    };
    let config = BootConfig {
        kernel,
        initrd: (head[3] & 1 != 0).then(|| file(&INITRD, initrd)),
        // No longer than a valid configuration has it.
        command_line: "x".repeat(usize::from(head[2]) * 8),
    };
    let _ = boot::finish(&memory, loaded, config, GuestAddress(0xe_0000));
});
