//! Kernels and initrds, whatever they are. The first four bytes say how long the
//! initrd is, which comes last, and how long the command line; the kernel is between.
#![no_main]

use std::fs::File;
use std::sync::OnceLock;

use fuzz::{files, memory};
use libfuzzer_sys::fuzz_target;
use outboard::{Builder, Tree};
use vm_memory::GuestAddress;
use vmm::boot::{self, blob::BootBlob};
use vmm::config::boot::BootConfig;

/// A file to be filled anew, and one for its hash tree.
type Files = OnceLock<[File; 2]>;

fn blob(files: &'static Files, content: &[u8]) -> BootBlob {
    let files = files.get_or_init(|| [files::empty(), files::empty()]);
    files::fill(&files[0], content);
    files::fill(&files[1], b"");
    let [data, outboard] = files
        .each_ref()
        .map(|file| file.try_clone().expect("one more descriptor"));
    let builder = Builder::new(outboard.try_clone().expect("one more descriptor"));
    let built = builder.build(content).expect("memory can be written");
    BootBlob::new(Tree::new(built.hash, built.blob_bytes), data, outboard)
}

fuzz_target!(|data: &[u8]| {
    static KERNEL: Files = OnceLock::new();
    static INITRD: Files = OnceLock::new();
    let Some((head, rest)) = data.split_first_chunk::<4>() else {
        return;
    };
    let initrd = usize::from(u16::from_le_bytes([head[0], head[1]])).min(rest.len());
    let (rest, initrd) = rest.split_at(rest.len() - initrd);
    let memory = memory::for_kernel();
    let mut kernel = blob(&KERNEL, rest);
    let Ok(loaded) = boot::load_kernel(&memory, &mut kernel) else {
        return;
    };
    let config = BootConfig {
        kernel,
        initrd: (head[3] & 1 != 0).then(|| blob(&INITRD, initrd)),
        // No longer than a valid configuration has it.
        command_line: "x".repeat(usize::from(head[2]) * 8),
    };
    let _ = boot::finish(&memory, loaded, config, GuestAddress(0xe_0000));
});
