//! Leaves the guest in one way after another, many times each, and writes a byte to
//! COM1 between: a host that watches the clock learns what one exit takes.
//!
//! Two entries, as `first-instruction` has them: 64-bit by the Linux boot protocol,
//! whose page tables reach the devices of mote, and 32-bit by PVH, without paging.
//! The same text is assembled for both. The command line starts with the number of
//! turns. A virtio-rng device must be there: its registers are read and written, and
//! its queue, which stays empty, is what the doorbell is for.
#![no_std]
#![no_main]

use core::arch::global_asm;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

global_asm!(
    // Writes AL to COM1.
    ".macro mark byte",
    "mov dx, 0x3f8",
    "mov al, \\byte",
    "out dx, al",
    ".endm",
    // Does INSTRUCTION as many times as ESI says, and says so.
    ".macro measure byte, instruction:vararg",
    "xor eax, eax",
    "mov dx, 0x3ff",
    "mov ecx, esi",
    "1:",
    "\\instruction",
    "dec ecx",
    "jnz 1b",
    "mark \\byte",
    ".endm",
    ".macro register offset, value",
    "mov dword ptr [edi + \\offset], \\value",
    ".endm",
    // EDI, EBP, ECX: the first window of virtio devices, the step to the next, and
    // how many there are. EBX is the command line.
    ".macro play",
    "1:",
    "cmp dword ptr [edi + 8], 4", // DeviceID: entropy source
    "je 2f",
    "add edi, ebp",
    "dec ecx",
    "jnz 1b",
    "mark 0x3f", // '?'
    "jmp 9f",
    // Virtio 1.3, 3.1.1 and 4.2.2: Status, features (VIRTIO_F_VERSION_1 alone), one
    // queue of 8, whose rings are the zeroes at 2 MiB.
    "2:",
    "register 0x70, 0",
    "register 0x70, 1",
    "register 0x70, 3",
    "register 0x24, 1",
    "register 0x20, 1",
    "register 0x24, 0",
    "register 0x20, 0",
    "register 0x70, 11",
    "register 0x30, 0",
    "register 0x38, 8",
    "register 0x80, 0x200000",
    "register 0x84, 0",
    "register 0x90, 0x201000",
    "register 0x94, 0",
    "register 0xa0, 0x202000",
    "register 0xa4, 0",
    "register 0x44, 1",
    "register 0x70, 15",
    // The number of turns.
    "xor esi, esi",
    "3:",
    "movzx eax, byte ptr [ebx]",
    "sub eax, 0x30",
    "cmp eax, 9",
    "ja 4f",
    "imul esi, esi, 10",
    "add esi, eax",
    "inc ebx",
    "jmp 3b",
    "4:",
    "mark 0x21",                                 // '!'
    "measure 0x30, nop",                         // nothing but the loop
    "measure 0x31, out dx, al",                  // a port: the scratch register of COM1
    "measure 0x32, in al, dx",                   //
    "measure 0x33, mov eax, [edi]",              // MMIO: MagicValue
    "measure 0x34, mov dword ptr [edi+0x30], 0", // MMIO: QueueSel
    "measure 0x35, mov dword ptr [edi+0x50], 0", // a doorbell: QueueNotify
    // Each of these ends one machine or another: the sleep register of mote, the
    // keyboard controller's reset line, a triple fault.
    "9:",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "mov al, 0xfe",
    "out 0x64, al",
    "ud2",
    ".endm",
    //
    ".section .text.boot, \"ax\"",
    ".globl start_64",
    ".code64",
    "start_64:",
    "mov ebx, [rsi + 0x228]", // boot_params.hdr.cmd_line_ptr
    "mov edi, 0xd0000000",
    "mov ebp, 0x1000",
    "mov ecx, 19",
    "play",
    ".code32",
    "start_32:",
    "mov ebx, [ebx + 24]", // hvm_start_info.cmdline_paddr
    // QEMU, include/hw/i386/microvm.h.
    "mov edi, 0xfeb00000",
    "mov ebp, 0x200",
    "mov ecx, 24",
    "play",
    ".code64",
    // XEN_ELFNOTE_PHYS32_ENTRY (Xen, public/elfnote.h).
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long start_32",
);
