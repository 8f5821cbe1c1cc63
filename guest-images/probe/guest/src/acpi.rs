//! Reads the ACPI tables as a kernel would, and checks them on the way.

use alloc::vec::Vec;

const HEADER_BYTES: usize = 36;
const XSDT_ADDRESS: usize = 24;
const DSDT_ADDRESS: usize = 140;
const MADT_STRUCTURES: usize = 44;
const MADT_LOCAL_APIC: u8 = 0;

fn bytes_at(address: u64, length: usize) -> &'static [u8] {
    // SAFETY: memory below 4 GiB is mapped, and nobody writes the tables.
    unsafe { core::slice::from_raw_parts(address as usize as *const u8, length) }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u64_at(table: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(table[offset..offset + 8].try_into().expect("eight bytes"))
}

fn table(address: u64, signature: &[u8; 4]) -> &'static [u8] {
    let header = bytes_at(address, HEADER_BYTES);
    let length = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
    let table = bytes_at(address, length as usize);
    assert_eq!(&table[..4], signature, "at {address:#x}");
    assert_eq!(sum(table), 0, "checksum of the table at {address:#x}");
    table
}

/// What the tables say.
pub struct Tables {
    /// Local APIC ids in order.
    pub cpus: Vec<u8>,
    /// Virtio devices.
    pub virtio_devices: usize,
    dsdt: &'static [u8],
}

impl Tables {
    /// Whether the DSDT names this.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// What follows `name` in the DSDT.
    fn find(&self, name: &str) -> Option<&'static [u8]> {
        let mut places = self.dsdt.windows(name.len());
        let at = places.position(|bytes| bytes == name.as_bytes())?;
        Some(&self.dsdt[at + name.len()..])
    }

    /// The VM generation id, its first byte first, from where `ADDR` says it is.
    pub fn generation_id(&self) -> u128 {
        // A package of two numbers, the first of them of 32 bits (ACPI 6.5, section
        // 20.2.5.4): operator, length, count, prefix, number.
        let package = self.find("ADDR").expect("a VM generation id");
        let [0x12, _, 2, 0x0c, low @ ..] = package else {
            panic!("ADDR is {:x?}", &package[..8]);
        };
        let address = u32::from_le_bytes([low[0], low[1], low[2], low[3]]);
        let id = bytes_at(address.into(), 16);
        u128::from_be_bytes(id.try_into().expect("16 bytes"))
    }
}

/// Reads the tables that start at `rsdp`.
pub fn read(rsdp: u64) -> Tables {
    let root = bytes_at(rsdp, HEADER_BYTES);
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!(sum(&root[..20]), 0, "checksum of the RSDP");
    assert_eq!(sum(root), 0, "extended checksum of the RSDP");
    let xsdt = table(u64_at(root, XSDT_ADDRESS), b"XSDT");
    let fadt = table(u64_at(xsdt, HEADER_BYTES), b"FACP");
    let madt = table(u64_at(xsdt, HEADER_BYTES + 8), b"APIC");
    let dsdt = table(u64_at(fadt, DSDT_ADDRESS), b"DSDT");

    let mut cpus = Vec::new();
    let mut structures = &madt[MADT_STRUCTURES..];
    while let [kind, length, ..] = *structures {
        if kind == MADT_LOCAL_APIC {
            cpus.push(structures[3]);
        }
        structures = &structures[length as usize..];
    }
    Tables {
        cpus,
        dsdt,
        virtio_devices: dsdt.windows(8).filter(|name| name == b"LNRO0005").count(),
    }
}
