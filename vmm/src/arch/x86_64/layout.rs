//! The guest's physical address space.
//!
//! ```text
//! 0x0000_0500  GDT of the boot vCPU
//! 0x0000_7000  boot_params, the "zero page" of the Linux boot protocol
//! 0x0000_8ff0  boot stack, growing down
//! 0x0000_9000  page tables: PML4, PDPT, then four page directories
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  end of conventional memory
//! 0x000e_0000  ACPI tables, RSDP first
//! 0x000f_f000  VM generation id
//! 0x0010_0000  kernel
//!      …       initrd, as high as it fits
//! 0xd000_0000  end of low memory; virtio-mmio windows, 4 KiB each
//! 0xfec0_0000  IOAPIC
//! 0xfee0_0000  local APICs
//! 0xfffb_d000  three pages KVM needs on Intel (KVM_SET_TSS_ADDR)
//! 0x1_0000_0000  memory beyond 3.25 GiB
//!      …       persistent memory, each file at the next multiple of 2 MiB
//! ```

use vm_memory::GuestAddress;

/// The boot vCPU's global descriptor table.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// `struct boot_params` (Linux, Documentation/x86/zero-page.rst).
pub const BOOT_PARAMS: GuestAddress = GuestAddress(0x7000);
/// Where RSP points when the kernel is entered.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The page map level 4; the other page tables follow it.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// The page directory pointer table.
pub const PDPT: GuestAddress = GuestAddress(0xa000);
/// The first of [`IDENTITY_MAPPED_GIB`] page directories.
pub const PAGE_DIRECTORIES: GuestAddress = GuestAddress(0xb000);
/// How much of the address space the boot page tables map one to one. Four, so
/// that a guest without page tables of its own reaches the device windows.
pub const IDENTITY_MAPPED_GIB: u64 = 4;
/// The kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// With its terminating zero; `COMMAND_LINE_SIZE` of Linux on x86.
pub const COMMAND_LINE_MAX_BYTES: usize = 2048;
/// End of the memory below 640 KiB that the kernel may use.
pub const CONVENTIONAL_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables; Linux also finds the RSDP by scanning from here.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// The first address after the ACPI tables' room.
pub const ACPI_TABLES_END: u64 = GENERATION_ID.0;
/// The VM generation id, in a page that the guest is told is reserved.
pub const GENERATION_ID: GuestAddress = GuestAddress(0xf_f000);
/// 1 MiB, where kernels are loaded and where `e820` memory goes on.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Memory does not extend past this address below 4 GiB.
pub const LOW_MEMORY_END: u64 = MMIO_WINDOWS;
/// Where memory goes on above the hole.
pub const MEMORY_ABOVE_4_GIB: u64 = 1 << 32;

/// Where persistent memory begins, and its sizes: a huge page, and what Linux needs
/// to have it as memory (`memremap_compat_align`).
pub const PMEM_ALIGNMENT: u64 = 2 << 20;

/// The virtio-mmio windows.
pub const MMIO_WINDOWS: u64 = 0xd000_0000;
/// The size of one window.
pub const MMIO_WINDOW_BYTES: u64 = 0x1000;

/// The IOAPIC's registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Every local APIC's registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// See `KVM_SET_TSS_ADDR` in the KVM API.
pub const KVM_TSS: usize = 0xfffb_d000;

/// COM1's ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const SERIAL_GSI: u32 = 4;
/// The power button's interrupt. A PC's keyboard would have it; there is none.
pub const POWER_BUTTON_GSI: u32 = 1;
/// The interrupt that tells of a new VM generation id: COM2's, which is not there.
pub const GENERATION_ID_GSI: u32 = 3;
/// The power control register's port: see [`crate::devices::power`].
pub const POWER_PORT: u16 = 0x600;

/// The first global system interrupt given to a virtio device.
pub const FIRST_DEVICE_GSI: u32 = 5;
/// The IOAPIC that KVM emulates has 24 pins.
pub const LAST_DEVICE_GSI: u32 = 23;
/// The most virtio devices one microVM can have.
pub const MAX_DEVICES: usize = (LAST_DEVICE_GSI - FIRST_DEVICE_GSI + 1) as usize;

/// Where `bytes` of memory go: start and length of one or two regions.
pub fn memory_regions(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(LOW_MEMORY_END);
    let mut regions = vec![(GuestAddress(0), low)];
    if bytes > low {
        regions.push((GuestAddress(MEMORY_ABOVE_4_GIB), bytes - low));
    }
    regions
}

/// Where persistent memory begins: above `memory_bytes` of other memory, and never
/// below 4 GiB.
pub fn pmem_start(memory_bytes: u64) -> GuestAddress {
    let above_hole = memory_bytes.saturating_sub(LOW_MEMORY_END);
    GuestAddress((MEMORY_ABOVE_4_GIB + above_hole).next_multiple_of(PMEM_ALIGNMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_up_to_the_hole_is_one_region() {
        assert_eq!(
            memory_regions(LOW_MEMORY_END),
            [(GuestAddress(0), LOW_MEMORY_END)]
        );
    }

    #[test]
    fn memory_past_the_hole_goes_on_at_4_gib() {
        assert_eq!(
            memory_regions(LOW_MEMORY_END + 4096),
            [
                (GuestAddress(0), LOW_MEMORY_END),
                (GuestAddress(MEMORY_ABOVE_4_GIB), 4096)
            ]
        );
    }

    #[test]
    fn persistent_memory_begins_above_all_other() {
        for bytes in [4096, LOW_MEMORY_END, LOW_MEMORY_END + 4096, 16 << 40] {
            let start = pmem_start(bytes).0;
            let last = memory_regions(bytes).pop();
            let end = last.map(|(start, length)| start.0 + length);
            assert!(start >= MEMORY_ABOVE_4_GIB && Some(start) >= end);
            assert!(start.is_multiple_of(PMEM_ALIGNMENT));
        }
    }

    #[test]
    fn nothing_overlaps_in_low_memory() {
        let page_tables_end = PAGE_DIRECTORIES.0 + IDENTITY_MAPPED_GIB * 4096;
        let places = [
            (GDT.0, GDT.0 + 0x20),
            (BOOT_PARAMS.0, BOOT_PARAMS.0 + 4096),
            (PML4.0, page_tables_end),
            (
                COMMAND_LINE.0,
                COMMAND_LINE.0 + COMMAND_LINE_MAX_BYTES as u64,
            ),
            (CONVENTIONAL_MEMORY_END, CONVENTIONAL_MEMORY_END),
            (ACPI_TABLES.0, ACPI_TABLES_END),
            (GENERATION_ID.0, GENERATION_ID.0 + 16),
            (HIGH_MEMORY, HIGH_MEMORY),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
