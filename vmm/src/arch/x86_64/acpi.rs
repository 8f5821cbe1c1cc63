//! The ACPI tables: just enough that an unmodified distribution kernel finds
//! its processors, its interrupt controller, its devices and the power switch.
//!
//! Hardware-reduced ACPI (ACPI 6.5, section 4.1): no SMI, no SCI, no PM timer.
//! A virtio-mmio device is an `LNRO0005`, as Linux's virtio_mmio driver matches
//! it, with one memory window and one edge-triggered interrupt. What has no
//! registers (the power button, the VM generation id) speaks up through a Generic
//! Event Device (section 5.6.9), which has an interrupt for each.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::devices::power;
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"MOTE  ";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
const DSDT_REVISION: u8 = 2;
const SDT_HEADER_BYTES: u32 = 36;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// The tables outgrew their place in low memory.
    #[error("the ACPI tables need {needed} bytes, there is room for {room}")]
    NoRoom {
        /// The size of all tables.
        needed: u64,
        /// The size of the place.
        room: u64,
    },
    /// Guest memory refused the write.
    #[error("cannot write the ACPI tables at {:#x} of guest memory", layout::ACPI_TABLES.raw_value())]
    Write(#[source] GuestMemoryError),
}

/// A virtio-mmio device as the guest is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Where its registers are.
    pub window: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// What the guest is told is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Number of processors.
    pub vcpus: u8,
    /// Whether COM1 is there.
    pub serial: bool,
    /// Whether there is a power button.
    pub power_button: bool,
    /// Whether there is a VM generation id.
    pub generation_id: bool,
    /// virtio-mmio devices in the order of their windows.
    pub mmio_devices: Vec<MmioDevice>,
}

/// Writes all tables and returns the address of the RSDP.
pub fn write_tables(memory: &GuestMemory, hardware: &Hardware) -> Result<GuestAddress, AcpiError> {
    let rsdp = layout::ACPI_TABLES;
    let dsdt = align(rsdp.unchecked_add(Rsdp::len() as u64));
    let mut tables = Vec::with_capacity(4096);
    let mut place = |table: &dyn Aml, at: GuestAddress| {
        tables.resize((at.raw_value() - rsdp.raw_value()) as usize, 0);
        table.to_aml_bytes(&mut tables);
        align(rsdp.unchecked_add(tables.len() as u64))
    };
    let fadt = place(&dsdt_table(hardware), dsdt);
    let madt = place(&fadt_table(dsdt), fadt);
    let xsdt = place(&madt_table(hardware.vcpus), madt);
    let end = place(&xsdt_table(&[fadt, madt]), xsdt);
    let needed = end.raw_value() - rsdp.raw_value();
    let room = layout::ACPI_TABLES_END - rsdp.raw_value();
    if needed > room {
        return Err(AcpiError::NoRoom { needed, room });
    }
    let mut head = Vec::new();
    Rsdp::new(OEM_ID, xsdt.raw_value()).to_aml_bytes(&mut head);
    tables[..head.len()].copy_from_slice(&head);
    memory
        .write_slice(&tables, rsdp)
        .map_err(AcpiError::Write)?;
    Ok(rsdp)
}

fn align(address: GuestAddress) -> GuestAddress {
    GuestAddress(address.raw_value().next_multiple_of(16))
}

fn register(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn fadt_table(dsdt: GuestAddress) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt.raw_value())
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.sleep_control_reg = register(layout::POWER_PORT + power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::POWER_PORT + power::SLEEP_STATUS);
    fadt.reset_reg = register(layout::POWER_PORT + power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    // IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): no VGA to probe, no CMOS clock.
    fadt.iapc_boot_arch = ((1 << 2) | (1 << 5)).into();
    fadt.finalize()
}

fn madt_table(vcpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn xsdt_table(tables: &[GuestAddress]) -> impl Aml {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables {
        xsdt.add_entry(table.raw_value());
    }
    xsdt
}

fn dsdt_table(hardware: &Hardware) -> impl Aml {
    let mut aml = Vec::new();
    // \_S5_ holds the sleep type that the guest writes to power off.
    let sleep_type = power::SLEEP_TYPE_OFF;
    Name::new(Path::new("_S5_"), &Package::new(vec![&sleep_type])).to_aml_bytes(&mut aml);
    if hardware.serial {
        write_serial(&mut aml);
    }
    for (device, index) in hardware.mmio_devices.iter().zip(0_u32..) {
        write_device(*device, index, &mut aml);
    }
    write_announcers(hardware, &mut aml);
    let mut dsdt = Sdt::new(
        *b"DSDT",
        SDT_HEADER_BYTES,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&aml);
    dsdt
}

/// `consumer`, edge-triggered, active high, not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn write_serial(aml: &mut Vec<u8>) {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8);
    let interrupt = edge(layout::SERIAL_GSI);
    Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &0_u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&interrupt, &ports]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

fn write_device(device: MmioDevice, index: u32, aml: &mut Vec<u8>) {
    let name = format!("V{index:03}");
    let window = Memory32Fixed::new(true, device.window, layout::MMIO_WINDOW_BYTES as u32);
    let interrupt = edge(device.gsi);
    let coherent: u8 = 1;
    Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(
            Path::new(&name),
            vec![
                &Name::new(Path::new("_HID"), &"LNRO0005"),
                &Name::new(Path::new("_UID"), &index),
                &Name::new(Path::new("_CCA"), &coherent),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&window, &interrupt]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// The value of `Notify` for a button that was pressed (ACPI 6.5, table 5.168)
/// and for a generation id that has changed (Virtual Machine Generation ID).
const NOTIFY_STATUS: u8 = 0x80;

/// The devices without registers, and the Generic Event Device they speak through.
fn write_announcers(hardware: &Hardware, aml: &mut Vec<u8>) {
    let mut announcers = Vec::new();
    if hardware.power_button {
        write_power_button(aml);
        announcers.push((layout::POWER_BUTTON_GSI, "\\_SB_.PWRB"));
    }
    if hardware.generation_id {
        write_generation_id(aml);
        announcers.push((layout::GENERATION_ID_GSI, "\\_SB_.VGEN"));
    }
    if !announcers.is_empty() {
        write_event_device(&announcers, aml);
    }
}

/// A power button by control method (section 4.8.2.2.1.2).
fn write_power_button(aml: &mut Vec<u8>) {
    Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(
            Path::new("PWRB"),
            vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"))],
        )],
    )
    .to_aml_bytes(aml);
}

/// The device of Microsoft's "Virtual Machine Generation ID": `ADDR` tells where
/// the id is, low half first. Drivers know the device by its compatible ids; the
/// second is what fits ACPI's limit of eight characters.
fn write_generation_id(aml: &mut Vec<u8>) {
    let address = layout::GENERATION_ID.raw_value();
    let (low, high) = (address as u32, (address >> 32) as u32);
    let compatible: [&'static str; 2] = ["VM_Gen_Counter", "VMGENCTR"];
    Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(
            Path::new("VGEN"),
            vec![
                &Name::new(Path::new("_HID"), &"MOTE0001"),
                &Name::new(
                    Path::new("_CID"),
                    &Package::new(vec![&compatible[0], &compatible[1]]),
                ),
                &Name::new(Path::new("_DDN"), &compatible[0]),
                &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// The Generic Event Device: each interrupt notifies the device at its path.
fn write_event_device(announcers: &[(u32, &'static str)], aml: &mut Vec<u8>) {
    let interrupts: Vec<Interrupt> = announcers.iter().map(|(gsi, _)| edge(*gsi)).collect();
    let paths: Vec<Path> = announcers.iter().map(|(_, path)| Path::new(path)).collect();
    let notifies: Vec<Notify> = paths
        .iter()
        .map(|path| Notify::new(path, &NOTIFY_STATUS))
        .collect();
    let matches: Vec<Equal> = announcers
        .iter()
        .map(|(gsi, _)| Equal::new(&Arg(0), gsi))
        .collect();
    let branches: Vec<If> = matches
        .iter()
        .zip(&notifies)
        .map(|(matches, notify)| If::new(matches, vec![notify]))
        .collect();
    let resources = interrupts.iter().map(|interrupt| interrupt as _).collect();
    let body = branches.iter().map(|branch| branch as _).collect();
    Scope::new(
        Path::new("_SB_"),
        vec![&Device::new(
            Path::new("GED_"),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0013"),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
                &Method::new(Path::new("_EVT"), 1, true, body),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_eq!(bytes.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        bytes
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
        let memory = memory::create(16 << 20).unwrap();
        let mmio_devices: Vec<_> = (0..layout::MAX_DEVICES as u32)
            .map(|n| MmioDevice {
                window: 0xd000_0000 + n * 0x1000,
                gsi: 5 + n,
            })
            .collect();
        let hardware = Hardware {
            vcpus: 32,
            serial: true,
            power_button: true,
            generation_id: true,
            mmio_devices,
        };
        let rsdp = write_tables(&memory, &hardware).unwrap();
        let mut head = [0; 36];
        memory.read_slice(&mut head, rsdp).unwrap();
        assert_eq!(&head[..8], b"RSD PTR ");
        let xsdt = table(&memory, u64_at(&head, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&memory, u64_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&memory, u64_at(&xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        let dsdt = table(&memory, u64_at(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let found = dsdt.windows(8).filter(|w| w == b"LNRO0005").count();
        assert_eq!(found, hardware.mmio_devices.len());
        for name in ["ACPI0013", "_EVT", "PWRB", "VM_Gen_Counter"] {
            assert!(finds(&dsdt, name), "{name} is missing");
        }
    }
    fn finds(table: &[u8], name: &str) -> bool {
        table
            .windows(name.len())
            .any(|bytes| bytes == name.as_bytes())
    }

    #[test]
    fn a_machine_without_announcers_has_no_event_device() {
        let memory = memory::create(16 << 20).unwrap();
        let rsdp = write_tables(&memory, &Hardware::default()).unwrap();
        let mut tables = vec![0; 0x1000];
        memory.read_slice(&mut tables, rsdp).unwrap();
        for name in ["ACPI0013", "PWRB", "VM_Gen_Counter"] {
            assert!(!finds(&tables, name), "{name} is there");
        }
    }
}
