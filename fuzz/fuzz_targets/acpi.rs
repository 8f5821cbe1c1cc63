//! ACPI tables of any hardware.
#![no_main]

use arbitrary::{Result, Unstructured};
use fuzz::memory;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Address, Bytes, GuestAddress};
use vmm::arch::layout;
use vmm::arch::x86_64::acpi::{Hardware, MmioDevice, write_tables};
use vmm::memory::GuestMemory;

fn hardware(u: &mut Unstructured) -> Result<Hardware> {
    let devices = u.int_in_range(0..=layout::MAX_DEVICES)?;
    Ok(Hardware {
        vcpus: u.arbitrary()?,
        serial: u.arbitrary()?,
        power_button: u.arbitrary()?,
        generation_id: u.arbitrary()?,
        mmio_devices: (0..devices)
            .map(|_| {
                Ok(MmioDevice {
                    window: u.arbitrary()?,
                    gsi: u.arbitrary()?,
                })
            })
            .collect::<Result<_>>()?,
    })
}

/// Reads a table and checks its sum.
fn table(memory: &GuestMemory, at: u64, signature: &[u8; 4]) -> Vec<u8> {
    let length: u32 = memory.read_obj(GuestAddress(at + 4)).expect("a table");
    assert!(at + u64::from(length) <= layout::ACPI_TABLES_END);
    let mut bytes = vec![0; length as usize];
    memory
        .read_slice(&mut bytes, GuestAddress(at))
        .expect("a table");
    assert_eq!(&bytes[..4], signature);
    assert_eq!(
        bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    bytes
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fuzz_target!(|data: &[u8]| {
    let Ok(hardware) = hardware(&mut Unstructured::new(data)) else {
        return;
    };
    let memory = memory::for_kernel();
    // The VM generation id lies behind the tables.
    memory
        .write_obj(u64::MAX, layout::GENERATION_ID)
        .expect("memory");
    let rsdp = write_tables(&memory, &hardware).expect("room for all that there can be");
    let xsdt: u64 = memory
        .read_obj(rsdp.unchecked_add(24))
        .expect("a root pointer");
    let xsdt = table(&memory, xsdt, b"XSDT");
    let fadt = table(&memory, number(&xsdt, 36), b"FACP");
    table(&memory, number(&xsdt, 44), b"APIC");
    table(&memory, number(&fadt, 140), b"DSDT");
    let behind: u64 = memory.read_obj(layout::GENERATION_ID).expect("memory");
    assert_eq!(behind, u64::MAX);
});
