//! Rings over files that lie on a disk, as far as the host's temporary directory
//! does. A host without io_uring has nothing here to test.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Advice, Mode, OFlags, fadvise};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::block::Range;
use crate::block::buffers::Buffers;
use crate::block::extents::Extent;
use crate::memory::{self, GuestMemory};

const DISK_BYTES: usize = 1 << 20;
const MEMORY_BYTES: u64 = 4 << 20;

fn content() -> Vec<u8> {
    (0..DISK_BYTES)
        .map(|n| (n / 512 * 7 + n % 251) as u8)
        .collect()
}

fn stored_file() -> Arc<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::from(0o600)).unwrap();
    let file = File::from(file);
    file.write_all_at(&content(), 0).unwrap();
    Arc::new(file)
}

/// A disk of two extents of `file`, the second half first.
fn swapped(file: &Arc<File>) -> ExtentDisk {
    let half = DISK_BYTES as u64 / 2;
    let extents = [half, 0].map(|offset_bytes| Extent {
        file: Arc::clone(file),
        offset_bytes,
        length_bytes: half,
        blob: None,
    });
    ExtentDisk::new(extents.into(), false).unwrap()
}

fn swapped_content() -> Vec<u8> {
    let mut content = content();
    content.rotate_left(DISK_BYTES / 2);
    content
}

/// `None`, and a line that says why, where the kernel has no rings.
fn ring(file: &Arc<File>) -> Option<RingDisk> {
    made(RingDisk::new(swapped(file)).map_err(|(_, error)| error))
}

/// A ring, or a line that says why there is none.
pub(in crate::block) fn made(ring: io::Result<RingDisk>) -> Option<RingDisk> {
    let ring = ring.inspect_err(|error| {
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        // Past the test harness, which shows nothing of a test that passes.
        let line = format!("skipped: {test}: cannot make a ring (io_uring): {error}\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    });
    ring.ok()
}

fn ticket(head: u16) -> Ticket {
    Ticket {
        head,
        status: GuestAddress(0),
        written: 0,
        writes: false,
    }
}

fn buffers(memory: &GuestMemory, address: u64, length: usize) -> Buffers {
    let mut buffers = Buffers::default();
    buffers.push(memory, GuestAddress(address), length).unwrap();
    buffers
}

/// The result of `operation`, at once or later.
fn finish(disk: &mut RingDisk, operation: Operation) -> io::Result<()> {
    if let Some(result) = disk.start(ticket(7), operation) {
        return result;
    }
    loop {
        if let Some((done, result)) = disk.complete() {
            assert_eq!(done, ticket(7));
            return result;
        }
        disk.submit();
        let event = disk.completions().unwrap();
        poll(&mut [PollFd::from_borrowed_fd(event, PollFlags::IN)], None).unwrap();
        disk.acknowledge();
    }
}

#[test]
fn data_that_are_not_in_memory_arrive_later_and_whole() {
    let file = stored_file();
    let Some(mut disk) = ring(&file) else { return };
    let memory = memory::create(MEMORY_BYTES).unwrap();
    for turn in 0..4 {
        // Gone from the page cache, on most file systems.
        file.sync_all().unwrap();
        fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        let start = turn * 512;
        let wanted = buffers(&memory, 0, DISK_BYTES - start);
        finish(&mut disk, Operation::Read(start as u64, wanted)).unwrap();
        let mut read = vec![0; DISK_BYTES - start];
        memory.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert!(read == swapped_content()[start..]);
    }
}

#[test]
fn everything_a_disk_does_is_done_in_the_ring_too() {
    for shortcuts in [Shortcuts::Quick, Shortcuts::None] {
        let file = stored_file();
        let Ok(mut disk) = RingDisk::with(swapped(&file), shortcuts) else {
            return;
        };
        let memory = memory::create(MEMORY_BYTES).unwrap();
        let half = DISK_BYTES / 2;
        let mut expected = swapped_content();
        // Across the border of the extents.
        memory.write_slice(&[9; 4096], GuestAddress(0)).unwrap();
        let write = Operation::Write(half as u64 - 1024, buffers(&memory, 0, 4096));
        finish(&mut disk, write).unwrap();
        expected[half - 1024..][..4096].fill(9);
        for (offset, unmap) in [(8192, true), (32768, false)] {
            let range = Range {
                offset,
                length: 4096,
            };
            finish(&mut disk, Operation::WriteZeroes { range, unmap }).unwrap();
            expected[offset as usize..][..4096].fill(0);
        }
        finish(&mut disk, Operation::Flush).unwrap();
        let read = Operation::Read(0, buffers(&memory, 0, DISK_BYTES));
        finish(&mut disk, read).unwrap();
        let mut read = vec![0; DISK_BYTES];
        memory.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert!(read == expected);
        let ranges = vec![Range {
            offset: 0,
            length: DISK_BYTES as u64,
        }];
        finish(&mut disk, Operation::Discard(ranges)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), DISK_BYTES as u64);
    }
}

#[test]
fn there_is_room_for_a_queue_of_requests_and_none_for_more() {
    let file = stored_file();
    let ring = RingDisk::without_shortcuts(swapped(&file)).map_err(|(_, error)| error);
    let Some(mut disk) = made(ring) else {
        return;
    };
    let memory = memory::create(MEMORY_BYTES).unwrap();
    let mut begun = 0;
    while disk.has_room() {
        let read = Operation::Read(0, buffers(&memory, 0, 512));
        assert!(disk.start(ticket(begun), read).is_none());
        begun += 1;
    }
    assert_eq!(u32::from(begun), IN_FLIGHT);
    disk.submit();
    assert!(disk.wait(Duration::from_secs(60)));
    assert!(disk.complete().is_none());
    assert_eq!(disk.free.len(), disk.requests.len());
    let read = Operation::Read(0, buffers(&memory, 0, 512));
    finish(&mut disk, read).unwrap();
}

#[test]
fn a_ring_is_good_for_nothing_but_this_disk() {
    let file = stored_file();
    let Some(mut disk) = ring(&file) else { return };
    let other = types::Fd(file.as_raw_fd());
    let mut bytes = [0_u8; 16];
    let read = opcode::Read::new(types::Fixed(0), bytes.as_mut_ptr(), 16).build();
    let piece = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: 16,
    };
    let entries = [
        opcode::Nop::new().build(),
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build(),
        opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
        // An operation that is not among the four, on a file that is.
        read.flags(squeue::Flags::FIXED_FILE),
        // One that is, on a descriptor.
        opcode::Readv::new(other, &piece, 1).build(),
    ];
    for entry in entries {
        // SAFETY: what the entries point to lives until they are completed below.
        unsafe { disk.ring.submission().push(&entry) }.unwrap();
        disk.ring.submit_and_wait(1).unwrap();
        let result = disk.ring.completion().next().unwrap().result();
        assert_eq!(result, -libc::EACCES, "{entry:?}");
    }
    let no_more_files = disk.ring.submitter().register_files_update(0, &[0]);
    assert!(no_more_files.is_err());
}
