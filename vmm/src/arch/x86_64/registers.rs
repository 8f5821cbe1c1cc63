//! What a vCPU's registers hold when the kernel is entered: 64-bit mode with
//! flat segments and one-to-one page tables, as the Linux 64-bit boot protocol
//! asks (Documentation/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const CR0_PROTECTION_ENABLE: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

const PAGE_PRESENT: u64 = 1 << 0;
const PAGE_WRITABLE: u64 = 1 << 1;
const PAGE_LARGE: u64 = 1 << 7;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, and write-back where none applies. A guest that finds them
/// off takes all of its memory for uncacheable.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Null, unused, code (`__BOOT_CS`), data (`__BOOT_DS`).
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Why the boot vCPU could not be given its first state.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The GDT or the page tables do not fit: the guest has too little memory.
    #[error("cannot write the boot page tables at {address:#x} of guest memory")]
    PageTables {
        /// Where the write went.
        address: u64,
        /// Why it failed.
        source: GuestMemoryError,
    },
    /// KVM refused the registers.
    #[error("KVM refused to {action}")]
    Kvm {
        /// Which ioctl was made.
        action: &'static str,
        /// What it answered.
        source: kvm_ioctls::Error,
    },
}

fn kvm(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegisterError {
    move |source| RegisterError::Kvm { action, source }
}

/// Writes the GDT and page tables that [`enter_long_mode`] points at.
pub fn write_boot_tables(memory: &GuestMemory) -> Result<(), RegisterError> {
    let write = |value: u64, address: GuestAddress| {
        memory
            .write_obj(value.to_le(), address)
            .map_err(|source| RegisterError::PageTables {
                address: address.raw_value(),
                source,
            })
    };
    for (entry, index) in GDT_ENTRIES.iter().zip(0..) {
        write(*entry, layout::GDT.unchecked_add(index * 8))?;
    }
    let table = PAGE_PRESENT | PAGE_WRITABLE;
    write(layout::PDPT.raw_value() | table, layout::PML4)?;
    for gib in 0..layout::IDENTITY_MAPPED_GIB {
        let directory = layout::PAGE_DIRECTORIES.unchecked_add(gib * 4096);
        write(
            directory.raw_value() | table,
            layout::PDPT.unchecked_add(gib * 8),
        )?;
        // One write a directory, not one an entry: this is on the start path.
        let mut entries = [0; 4096];
        for (entry, index) in entries.chunks_exact_mut(8).zip(0_u64..) {
            let page = (gib << 30) | (index << 21);
            entry.copy_from_slice(&(page | table | PAGE_LARGE).to_le_bytes());
        }
        memory
            .write_slice(&entries, directory)
            .map_err(|source| RegisterError::PageTables {
                address: directory.raw_value(),
                source,
            })?;
    }
    Ok(())
}

fn segment(selector: u16, executable: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: if executable { 0xb } else { 0x3 },
        present: 1,
        dpl: 0,
        db: u8::from(!executable),
        s: 1,
        l: u8::from(executable),
        g: 1,
        ..Default::default()
    }
}

fn set_boot_segments(sregs: &mut kvm_sregs) {
    let data = segment(DATA_SELECTOR, false);
    sregs.cs = segment(CODE_SELECTOR, true);
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    // A busy 64-bit TSS: VM entry demands one, the guest loads its own.
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable {
        base: layout::GDT.raw_value(),
        limit: (GDT_ENTRIES.len() * 8 - 1) as u16,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    sregs.cr3 = layout::PML4.raw_value();
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.cr0 = CR0_PROTECTION_ENABLE | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

/// Puts the boot vCPU into 64-bit mode.
pub fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(kvm("read the special registers (KVM_GET_SREGS)"))?;
    set_boot_segments(&mut sregs);
    vcpu.set_sregs(&sregs)
        .map_err(kvm("set the special registers (KVM_SET_SREGS)"))
}

/// Points the boot vCPU at `entry`, with RSI at `boot_params`.
pub fn set_entry(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), RegisterError> {
    vcpu.set_regs(&kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.raw_value(),
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rsi: layout::BOOT_PARAMS.raw_value(),
        ..Default::default()
    })
    .map_err(kvm("set the registers (KVM_SET_REGS)"))
}

/// Sets the model-specific registers that firmware would have set.
pub fn set_firmware_msrs(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let refused = || kvm("set model-specific registers (KVM_SET_MSRS)");
    // The list is far below the wrapper's limit, so this cannot fail.
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| refused()(kvm_ioctls::Error::new(libc::EINVAL)))?;
    let set = vcpu.set_msrs(&msrs).map_err(refused())?;
    if set < entries.len() {
        return Err(refused()(kvm_ioctls::Error::new(libc::EINVAL)));
    }
    Ok(())
}
