//! The smallest guest there is use for: its first act is to write a byte to COM1,
//! so that a host can tell when the first instruction was executed.
//!
//! Two entries: 64-bit by the Linux boot protocol (RSI is `boot_params`), 32-bit
//! by PVH (EBX is `hvm_start_info`). Both then look at the command line and halt
//! for good or power off.
#![no_std]
#![no_main]

use core::arch::global_asm;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

global_asm!(
    ".section .text.boot, \"ax\"",
    ".globl start_64",
    ".code64",
    "start_64:",
    "mov dx, 0x3f8",
    "mov al, 0x21", // '!'
    "out dx, al",
    "mov eax, [rsi + 0x228]",   // boot_params.hdr.cmd_line_ptr
    "cmp byte ptr [rax], 0x69", // 'i'
    "je 2f",
    // Each of these ends one machine or another: the sleep register of mote, the
    // keyboard controller's reset line, and, as there is no interrupt table, a
    // triple fault.
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    "ud2",
    "2:",
    "cli",
    "hlt",
    "jmp 2b",
    ".code32",
    "start_32:",
    "mov dx, 0x3f8",
    "mov al, 0x21",
    "out dx, al",
    "mov eax, [ebx + 24]", // hvm_start_info.cmdline_paddr
    "test eax, eax",
    "jz 3f",
    "cmp byte ptr [eax], 0x69",
    "je 2f",
    "3:",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    "ud2",
    "2:",
    "cli",
    "hlt",
    "jmp 2b",
    ".code64",
    // XEN_ELFNOTE_PHYS32_ENTRY (Xen, public/elfnote.h).
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long start_32",
);
