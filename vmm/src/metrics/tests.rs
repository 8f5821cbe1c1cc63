use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::device::QueueMeter;
use super::histogram::{BUCKETS, Histogram, bucket_of};
use super::layout::{DEVICE_BLOCKS, DeviceBlock, Header, Page, VCPU_BLOCKS, VERSION, VcpuBlock};
use super::page::{Metrics, Options};
use super::reader::{ReadError, Reader, Snapshot};
use super::*;

const DOCUMENTATION: &str = include_str!("../../../docs/metrics.md");

fn mapped(file: &File, latencies: bool) -> Metrics {
    let page = file.try_clone().unwrap();
    Metrics::map(&Options { page, latencies }).unwrap()
}

fn snapshot(file: &File) -> Result<Snapshot, ReadError> {
    Reader::new(file).unwrap().snapshot()
}

fn put(file: &File, offset: usize, value: u64) {
    file.write_all_at(&value.to_le_bytes(), offset as u64)
        .unwrap();
}

/// A page with a header, for one vCPU and two devices.
fn published() -> File {
    let file = create().unwrap();
    let mut metrics = mapped(&file, true);
    metrics.add_device("blk0", 2);
    metrics.add_device("a-name-longer-than-sixteen", 4);
    metrics.publish(1);
    file
}

macro_rules! documented {
    ($block:ident: $($field:ident),*) => {
        $(
            let row = format!("| {} | `{}` |", offset_of!($block, $field), stringify!($field));
            assert!(DOCUMENTATION.contains(&row), "{row}");
        )*
    };
}

#[test]
fn the_layout_is_the_documented_one() {
    documented!(Header: magic, version, vcpus, devices, latencies);
    documented!(VcpuBlock: port_reads, port_writes, mmio_reads, mmio_writes, interrupted, refused, ended, other, serving);
    documented!(DeviceBlock: name, kind, doorbells, queue_runs, chains, bytes_to_guest, bytes_from_guest);
    documented!(DeviceBlock: interrupts, faults, resets, limit_waits, service);
    documented!(Histogram: sum_ns);
    assert_eq!(offset_of!(Histogram, buckets) + 8 * (BUCKETS - 1), 312);
    assert_eq!(offset_of!(Page, vcpus), 512);
    assert_eq!(offset_of!(Page, devices), 16896);
    assert_eq!((FILE_BYTES, VCPU_BLOCKS, DEVICE_BLOCKS), (32768, 32, 31));
}

#[test]
fn what_is_counted_is_read() {
    let file = create().unwrap();
    let reader = Reader::new(&file).unwrap();
    assert!(matches!(reader.snapshot(), Err(ReadError::NotReady)));
    let mut metrics = mapped(&file, true);
    let device = metrics.add_device("net0", 1);
    metrics.publish(2);
    device.interrupt();
    device.from_guest(70);
    device.fault();
    let io = Ok(kvm_ioctls::VcpuExit::IoOut(0x80, &[1]));
    let exit = metrics.vcpu(1).count(&io);
    metrics.vcpu(1).served(exit);
    let _ = metrics
        .vcpu(1)
        .count(&Err(kvm_ioctls::Error::new(libc::EINTR)));

    let read = reader.snapshot().unwrap();
    assert!(read.latencies);
    assert_eq!((read.vcpus.len(), read.devices.len()), (2, 1));
    assert_eq!(read.vcpus[0].exits(), 0);
    let vcpu = &read.vcpus[1];
    assert_eq!((vcpu.port_writes, vcpu.interrupted), (1, 1));
    assert_eq!((vcpu.exits(), vcpu.serving.count()), (2, 1));
    let device = &read.devices[0];
    assert_eq!((device.name.as_str(), device.kind), ("net0", 1));
    assert_eq!((device.interrupts, device.faults, device.resets), (1, 1, 0));
    assert_eq!(device.bytes_from_guest, 70);
}

#[test]
fn a_meter_counts_what_the_driver_does_and_not_what_the_transport_does() {
    let file = create().unwrap();
    let mut metrics = mapped(&file, true);
    let device = metrics.add_device("rng", 4);
    metrics.publish(1);
    let mut meter = QueueMeter::new(device, false, &[4]);
    meter.doorbell(0, 3);
    meter.own_doorbell(0);
    meter.doorbell(0, 1);
    meter.own_doorbell(0);
    meter.doorbell(0, 2);
    // Of a queue and a descriptor that do not exist.
    meter.doorbell(7, 9);
    meter.taken(7, 1);
    meter.taken(0, 4);
    meter.returned(0, 4, 0);
    meter.taken(0, 3);
    meter.read(5);
    meter.returned(0, 3, 100);
    // A buffer that was lent has no time.
    meter.returned(0, 3, 10);
    let read = &snapshot(&file).unwrap().devices[0];
    assert_eq!((read.doorbells, read.chains), (4, 3));
    assert_eq!((read.bytes_to_guest, read.bytes_from_guest), (110, 5));
    assert_eq!(read.service.count(), 1);
}

#[test]
fn without_latencies_nothing_is_timed() {
    let file = create().unwrap();
    let mut metrics = mapped(&file, false);
    let mut meter = QueueMeter::new(metrics.add_device("rng", 4), false, &[4]);
    metrics.publish(1);
    meter.taken(0, 0);
    meter.returned(0, 0, 1);
    let exit = metrics
        .vcpu(0)
        .count(&Ok(kvm_ioctls::VcpuExit::MmioRead(0, &mut [0])));
    metrics.vcpu(0).served(exit);
    let read = snapshot(&file).unwrap();
    assert!(!read.latencies);
    assert_eq!(
        (read.devices[0].chains, read.devices[0].service.count()),
        (1, 0)
    );
    assert_eq!(
        (read.vcpus[0].mmio_reads, read.vcpus[0].serving.count()),
        (1, 0)
    );
}

#[test]
fn without_a_page_nothing_is_counted() {
    let mut metrics = Metrics::none();
    let device = metrics.add_device("blk0", 2);
    metrics.publish(1);
    device.interrupt();
    let mut meter = QueueMeter::new(device, false, &[4]);
    meter.taken(0, 0);
    meter.returned(0, 0, 1);
    let exit = metrics
        .vcpu(0)
        .count(&Ok(kvm_ioctls::VcpuExit::IoOut(1, &[])));
    metrics.vcpu(0).served(exit);
}

#[test]
fn more_devices_than_there_are_blocks_are_not_counted() {
    let file = create().unwrap();
    let mut metrics = mapped(&file, true);
    for _ in 0..DEVICE_BLOCKS + 2 {
        metrics.add_device("blk", 2).interrupt();
    }
    metrics.publish(1);
    let read = snapshot(&file).unwrap();
    assert_eq!(read.devices.len(), DEVICE_BLOCKS);
    assert!(read.devices.iter().all(|device| device.interrupts == 1));
}

#[test]
fn only_a_file_that_keeps_its_size_is_a_page() {
    let memfd = |seals: SealFlags, bytes| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("test", flags).unwrap());
        file.set_len(bytes).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    };
    for file in [
        memfd(SealFlags::GROW, FILE_BYTES),
        memfd(SealFlags::SHRINK, FILE_BYTES),
        memfd(SEALS, FILE_BYTES - 1),
        memfd(SEALS, FILE_BYTES + 4096),
        memfd(SEALS, 0),
        File::open("/dev/zero").unwrap(),
    ] {
        assert!(matches!(Reader::new(&file), Err(ReadError::NotAPage)));
    }
    Reader::new(&memfd(SEALS, FILE_BYTES)).unwrap();
    let page = create().unwrap();
    assert!(page.set_len(0).is_err());
    assert!(page.set_len(FILE_BYTES + 1).is_err());
    assert!(fcntl_add_seals(&page, SealFlags::WRITE).is_err());
}

#[test]
fn a_header_that_cannot_be_is_refused() {
    let refused = |offset, value| {
        let file = published();
        put(&file, offset, value);
        snapshot(&file).unwrap_err().to_string()
    };
    assert!(refused(0, 7).contains("0x7"));
    assert!(refused(offset_of!(Header, version), VERSION + 1).contains("version 2"));
    for count in [VCPU_BLOCKS as u64 + 1, u64::MAX] {
        let error = refused(offset_of!(Header, vcpus), count);
        assert!(error.contains(&format!("{count} vCPUs")), "{error}");
    }
    let count = DEVICE_BLOCKS as u64 + 1;
    assert!(refused(offset_of!(Header, devices), count).contains("32 devices"));
}

#[test]
fn names_are_cut_and_made_printable() {
    let file = published();
    assert_eq!(snapshot(&file).unwrap().devices[1].name, "a-name-longer-th");
    let offset = offset_of!(Page, devices);
    put(&file, offset, u64::from_le_bytes(*b"\x1b[2J\xff\n b"));
    put(&file, offset + 8, u64::from_le_bytes(*b"x\0secret"));
    assert_eq!(snapshot(&file).unwrap().devices[0].name, "?[2J???bx");
}

proptest! {
    #[test]
    fn a_time_is_in_the_bucket_whose_bounds_hold_it(bits in 0_u32..64, noise in any::<u64>()) {
        let ns = noise >> bits;
        let bucket = bucket_of(ns);
        prop_assert!(bucket < BUCKETS);
        prop_assert!(bucket == 0 || ns >= 1 << bucket);
        prop_assert!(bucket == BUCKETS - 1 || ns < 2 << bucket);
    }

    #[test]
    fn a_percentile_is_the_end_of_the_bucket_in_which_it_lies(
        mut times in prop::collection::vec(0_u64..1 << 38, 1..50),
        percent in 0_u8..=100,
    ) {
        let file = published();
        for time in &times {
            let at = offset_of!(Page, vcpus)
                + offset_of!(VcpuBlock, serving)
                + 8 * bucket_of(*time);
            let mut number = [0; 8];
            file.read_exact_at(&mut number, at as u64).unwrap();
            put(&file, at, u64::from_le_bytes(number) + 1);
        }
        times.sort();
        let rank = (times.len() * usize::from(percent)).div_ceil(100).max(1);
        let time = times[rank - 1];
        let end = snapshot(&file).unwrap().vcpus[0].serving.percentile(percent).unwrap();
        prop_assert!(time <= end && end < 2 * time.max(1), "{time} {end}");
    }

    #[test]
    fn whatever_a_hostile_vmm_writes_can_be_read(
        content in prop::collection::vec(any::<u64>(), FILE_BYTES as usize / 8),
        vcpus in 0..=VCPU_BLOCKS as u64,
        devices in 0..=DEVICE_BLOCKS as u64,
        whole in any::<bool>(),
    ) {
        let file = create().unwrap();
        let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&bytes, 0).unwrap();
        if whole {
            put(&file, 0, layout::MAGIC);
            put(&file, offset_of!(Header, version), VERSION);
            put(&file, offset_of!(Header, vcpus), vcpus);
            put(&file, offset_of!(Header, devices), devices);
        }
        let Ok(read) = snapshot(&file) else {
            prop_assert!(!whole);
            return Ok(());
        };
        prop_assert_eq!(read.vcpus.len() as u64, vcpus);
        prop_assert_eq!(read.devices.len() as u64, devices);
        for vcpu in &read.vcpus {
            let _ = (vcpu.exits(), vcpu.serving.count(), vcpu.serving.percentile(99));
        }
        for device in &read.devices {
            prop_assert!(device.name.len() <= layout::NAME_BYTES);
            prop_assert!(device.name.chars().all(|c| c.is_ascii_graphic()));
        }
        serde_json::to_string(&read).unwrap();
    }
}
