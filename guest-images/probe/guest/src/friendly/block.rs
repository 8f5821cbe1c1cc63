//! virtio-blk.

use alloc::vec;

use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::scenarios::Context;
use crate::virtio::{self, Identity, Window};
use crate::{interrupts, pattern, say, serial};

/// Sectors of one request each, over and over: some cross extents, some end on
/// their borders.
const REQUEST_SECTORS: [usize; 6] = [1, 3, 8, 17, 64, 2];

/// A disk.
pub type Disk = VirtIOBlk<Identity, MmioTransport<'static>>;

/// The first disk's registers.
pub fn window() -> Window {
    virtio::find(DeviceType::Block, 0)
}

/// A disk, reset and started.
pub fn start(window: Window) -> Disk {
    VirtIOBlk::new(virtio::transport(window)).expect("the disk starts")
}

/// Hands each piece of the disk to `handle`: the first sector and the number of
/// sectors.
fn for_each_piece(disk: &mut Disk, mut handle: impl FnMut(&mut Disk, usize, usize)) {
    let mut sizes = REQUEST_SECTORS.iter().cycle();
    let capacity = disk.capacity() as usize;
    let mut sector = 0;
    while sector < capacity {
        let count = sizes.next().map_or(1, |size| *size).min(capacity - sector);
        handle(disk, sector, count);
        sector += count;
    }
}

/// Reads all of the disk and compares it with the pattern.
pub fn compare(disk: &mut Disk, seed: u64) {
    for_each_piece(disk, |disk, sector, count| {
        let mut bytes = vec![0; count * SECTOR_SIZE];
        disk.read_blocks(sector, &mut bytes).expect("a read");
        let start = (sector * SECTOR_SIZE) as u64;
        assert_eq!(pattern::difference(seed, start, &bytes), None);
    });
}

/// Reads every disk: `seed`, `seed` + 1, …
pub fn read(context: &Context) {
    let disks = virtio::devices();
    let disks = disks
        .iter()
        .filter(|(kind, _)| *kind == DeviceType::Block as u32);
    for ((_, window), seed) in disks.zip(context.arguments.number("seed")..) {
        let mut disk = start(*window);
        compare(&mut disk, seed);
        say!("{} sectors", disk.capacity());
    }
}

/// Fills the disk with the pattern, flushes it, and reads it back.
pub fn write(context: &Context) {
    let seed = context.arguments.number("seed");
    let mut disk = start(window());
    assert!(!disk.readonly());
    for_each_piece(&mut disk, |disk, sector, count| {
        let mut bytes = vec![0; count * SECTOR_SIZE];
        pattern::fill(seed, (sector * SECTOR_SIZE) as u64, &mut bytes);
        disk.write_blocks(sector, &bytes).expect("a write");
    });
    disk.flush().expect("a flush");
    compare(&mut disk, seed);
    say!("{} sectors", disk.capacity());
}

/// Tries to write to a disk that cannot be written.
pub fn read_only(context: &Context) {
    let mut disk = start(window());
    assert!(disk.readonly());
    assert_eq!(disk.write_blocks(0, &[0; SECTOR_SIZE]), Err(Error::IoError));
    disk.flush().expect("a flush of nothing");
    compare(&mut disk, context.arguments.number("seed"));
    say!("refused");
}

/// Reads and writes past the end.
pub fn out_of_range(context: &Context) {
    let mut disk = start(window());
    let capacity = disk.capacity() as usize;
    let mut bytes = [0; 2 * SECTOR_SIZE];
    for sector in [capacity - 1, capacity, usize::MAX, usize::MAX / SECTOR_SIZE] {
        let read = disk.read_blocks(sector, &mut bytes);
        assert_eq!(read, Err(Error::IoError), "reading sector {sector}");
        let written = disk.write_blocks(sector, &bytes);
        assert_eq!(written, Err(Error::IoError), "writing sector {sector}");
    }
    compare(&mut disk, context.arguments.number("seed"));
    say!("refused");
}

/// Reads a disk that ends earlier than it said, once the host has made it so and
/// tells by a byte on the serial port.
pub fn shrunk(context: &Context) {
    const SERIAL_GSI: u32 = 4;
    interrupts::connect(SERIAL_GSI);
    serial::enable_input_interrupt();
    let mut disk = start(window());
    let mut bytes = [0; SECTOR_SIZE];
    say!("ready");
    loop {
        let seen = interrupts::count(SERIAL_GSI);
        if serial::read().is_some() {
            break;
        }
        interrupts::wait_for_more(SERIAL_GSI, seen);
    }
    disk.read_blocks(0, &mut bytes)
        .expect("a read of what is there");
    let seed = context.arguments.number("seed");
    assert_eq!(pattern::difference(seed, 0, &bytes), None);
    let last = disk.capacity() as usize - 1;
    assert_eq!(disk.read_blocks(last, &mut bytes), Err(Error::IoError));
    say!("an error");
}

/// Prints the disk's identity.
pub fn identity(_: &Context) {
    let mut identity = [0; 20];
    let length = start(window())
        .device_id(&mut identity)
        .expect("an identity");
    let text = core::str::from_utf8(&identity[..length]).expect("text");
    say!("identity {text}");
}

/// Halts until the disk has read a sector, many times.
pub fn interrupt(context: &Context) {
    const TURNS: usize = 64;
    let seed = context.arguments.number("seed");
    let window = window();
    interrupts::connect(window.gsi);
    let mut disk = start(window);
    let capacity = disk.capacity() as usize;
    for turn in 0..TURNS {
        let sector = turn * 7 % capacity;
        let seen = interrupts::count(window.gsi);
        let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
        let mut bytes = [0; SECTOR_SIZE];
        // SAFETY: the three stay where they are until the request is completed.
        let token = unsafe { disk.read_blocks_nb(sector, &mut request, &mut bytes, &mut response) };
        let token = token.expect("a free descriptor");
        interrupts::wait_for_more(window.gsi, seen);
        assert!(
            !disk.ack_interrupt().is_empty(),
            "an interrupt without status"
        );
        assert_eq!(disk.peek_used(), Some(token));
        // SAFETY: they are the same.
        unsafe { disk.complete_read_blocks(token, &request, &mut bytes, &mut response) }
            .expect("a read");
        let start = (sector * SECTOR_SIZE) as u64;
        assert_eq!(pattern::difference(seed, start, &bytes), None);
    }
    say!("{TURNS} interrupts");
}
