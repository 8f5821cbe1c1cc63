// From the entry point to privilege level 3, and back for interrupts.
//
// Where guest kernel code is interpreted, every instruction here costs half a
// microsecond and many are not known to the interpreter. So as little as possible
// runs at level 0: `iretq` leaves it for good, `int n` and I/O privilege do not
// work. Level 3 reaches ports through the bitmap of its task state, devices
// through page tables that forbid nothing, and level 0 by faulting: see
// `general_protection`.

.set KERNEL_CODE, 0x10
.set USER_DATA, 0x23
.set USER_CODE, 0x2b
.set TASK_STATE, 0x30

.set MAX_CPUS, 32
.set KERNEL_STACK_BYTES, 4096
.set USER_STACK_BYTES, 65536
.set TASK_STATE_BYTES, 512
// The task state proper, then a bitmap of zeroes for ports 0 to 0x7ff.
.set TASK_STATE_LIMIT, 104 + 256

.section .text.boot, "ax"
.code64

// The Linux 64-bit boot protocol: RSI points at `boot_params`.
.globl probe_start
probe_start:
    xor edi, edi

// Processor EDI goes to level 3 with RSI as the second argument of `entered`.
// Caches nothing and needs no stack of its own so far.
enter_level_3:
    lea rsp, [rip + KERNEL_STACKS]
    mov eax, edi
    inc eax
    shl eax, 12
    add rsp, rax
    lgdt [rip + gdt_pointer]
    lidt [rip + idt_pointer]

    // The task state: the stack for interrupts and the port bitmap.
    lea rbx, [rip + TASK_STATES]
    mov eax, edi
    shl eax, 9
    add rbx, rax
    mov [rbx + 4], rsp
    mov word ptr [rbx + 102], 104
    // Its descriptor.
    lea rdx, [rip + task_descriptors]
    mov eax, edi
    shl eax, 4
    add rdx, rax
    add eax, TASK_STATE
    mov ecx, eax
    mov rax, rbx
    mov word ptr [rdx], TASK_STATE_LIMIT
    mov [rdx + 2], ax
    shr rax, 16
    mov [rdx + 4], al
    mov byte ptr [rdx + 5], 0x89
    mov byte ptr [rdx + 6], 0
    mov [rdx + 7], ah
    mov dword ptr [rdx + 8], 0
    ltr cx

    lea rax, [rip + PAGE_MAP]
    mov cr3, rax
    // SSE: OSFXSR and OSXMMEXCPT; no EM.
    mov rax, cr4
    or rax, 0x600
    mov cr4, rax
    mov rax, cr0
    and rax, -5
    or rax, 2
    mov cr0, rax

    lea rbx, [rip + USER_STACKS]
    mov eax, edi
    inc eax
    shl rax, 16
    add rbx, rax
    sub rbx, 8
    push USER_DATA
    push rbx
    push 0x202
    push USER_CODE
    lea rax, [rip + entered]
    push rax
    iretq

// Where the other processors start, copied to a page below 1 MiB. In real mode;
// CS holds the page.
.globl trampoline
.globl trampoline_end
.code16
trampoline:
    cli
    mov ax, cs
    mov ds, ax
    // lgdt [trampoline_gdt_pointer - trampoline], with all 32 bits of the base:
    // the assembler does not take the difference.
    .byte 0x66, 0x0f, 0x01, 0x16
    .word trampoline_gdt_pointer - trampoline
    mov eax, 0x20                   // CR4.PAE
    mov cr4, eax
    mov eax, offset PAGE_MAP
    mov cr3, eax
    mov ecx, 0xc0000080             // EFER.LME
    mov eax, 0x100
    xor edx, edx
    wrmsr
    mov eax, 0x80000011             // CR0: PG, ET, PE
    mov cr0, eax
    .byte 0x66, 0xea                // far jump with a 32-bit offset
    .long trampoline_64
    .word KERNEL_CODE
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

.code64
trampoline_64:
    // The local APIC id is the processor's number.
    mov eax, 1
    cpuid
    shr ebx, 24
    mov edi, ebx
    xor esi, esi
    jmp enter_level_3

// One stub a vector, 16 bytes each. Vectors 0 to 31 are the processor's: each
// ends with its number and its error code, or a zero in its place, on the stack.
.globl EXCEPTION_STUBS
.balign 16
EXCEPTION_STUBS:
.set vector, 0
.rept 32
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
    .else
    push 0
    .endif
    push vector
    .if vector == 13
    jmp general_protection
    .else
    jmp exception
    .endif
    .set vector, vector + 1
.endr

// Vectors 32 to 63 are devices'.
.globl INTERRUPT_STUBS
.balign 16
INTERRUPT_STUBS:
.set vector, 0
.rept 32
    .balign 16
    push rax
    mov eax, vector
    jmp interrupt
    .set vector, vector + 1
.endr

// Counts, and tells the local APIC.
interrupt:
    push rcx
    lea rcx, [rip + INTERRUPT_COUNTS]
    inc qword ptr [rcx + rax * 8]
    mov ecx, 0xfee000b0
    mov dword ptr [rcx], 0
    pop rcx
    pop rax
    iretq

// `clts` is how level 3 asks for CPUID as level 0 reads it.
cpuid_at_level_0:
    pop rax
    cpuid
    add rsp, 16
    add qword ptr [rsp], 2
    iretq

// `hlt` is how level 3 asks to halt: until an interrupt, but only while the
// counter RDI points at still holds RSI. The comparison and the halt cannot be
// parted by an interrupt: `sti` takes effect one instruction later.
general_protection:
    push rax
    mov rax, [rsp + 24]
    cmp word ptr [rax], 0x060f
    je cpuid_at_level_0
    cmp byte ptr [rax], 0xf4
    pop rax
    jne exception
    cmp [rdi], rsi
    jne 2f
    sti
    hlt
    cli
2:
    add rsp, 16
    inc qword ptr [rsp]
    iretq

// Goes back to level 3, to `fault(vector, error_code, rip, cr2)`, on an aligned
// stack below what was in use.
exception:
    test byte ptr [rsp + 24], 3
    jz fault_at_level_0
    pop rdi
    pop rsi
    mov rdx, [rsp]
    mov rcx, cr2
    lea rax, [rip + fault]
    mov [rsp], rax
    mov rax, [rsp + 24]
    sub rax, 256
    and rax, -16
    sub rax, 8
    mov [rsp + 24], rax
    iretq

// A defect of this file.
fault_at_level_0:
    mov dx, 0x3f8
    mov al, 0x30
    out dx, al
    mov al, 0xfe
    out 0x64, al
    hlt
    jmp fault_at_level_0

.section .data.boot, "aw"
.balign 16
// The first two segments are where the Linux boot protocol has them, so that CS
// stays what it is.
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff        // level 0 code
    .quad 0x00cf93000000ffff        // level 0 data
    .quad 0x00cff3000000ffff        // level 3 data
    .quad 0x00affb000000ffff        // level 3 code
task_descriptors:
    .fill MAX_CPUS * 2, 8, 0
gdt_end:

.balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 64 * 16 - 1
    .quad IDT

// The first 8 GiB one to one, in pages of 2 MiB, for level 3 and writable.
.balign 4096
PAGE_MAP:
    .quad PAGE_DIRECTORY_POINTERS + 7
    .fill 511, 8, 0
PAGE_DIRECTORY_POINTERS:
    .set index, 0
    .rept 8
    .quad PAGE_DIRECTORIES + index * 4096 + 7
    .set index, index + 1
    .endr
    .fill 504, 8, 0
PAGE_DIRECTORIES:
    .set index, 0
    .rept 8 * 512
    .quad (index << 21) + 0x87
    .set index, index + 1
    .endr

.section .bss.boot, "aw", @nobits
.balign 4096
KERNEL_STACKS:
    .skip MAX_CPUS * KERNEL_STACK_BYTES
USER_STACKS:
    .skip MAX_CPUS * USER_STACK_BYTES
TASK_STATES:
    .skip MAX_CPUS * TASK_STATE_BYTES
.globl IDT
IDT:
    .skip 64 * 16
.globl INTERRUPT_COUNTS
INTERRUPT_COUNTS:
    .skip 32 * 8
