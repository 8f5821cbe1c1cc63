//! Whatever becomes of the files, a guest reads the blobs' bytes or an error.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use outboard::Builder;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::block::extents::{Extent, ExtentDisk};
use crate::block::plain::PlainDisk;
use crate::block::ring::{self, RingDisk};
use crate::block::{BlockBackend, Operation, Ticket};
use crate::memory::{self, GuestMemory};

const MEMORY_BYTES: u64 = 8 << 20;

/// A blob, and its files.
struct Made {
    content: Vec<u8>,
    data: Arc<File>,
    outboard: Arc<File>,
    blocks: Option<Arc<File>>,
    tree: Tree,
}

/// Files of the host's temporary directory, which lie on a disk where that does.
fn stored(bytes: &[u8]) -> Arc<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::from(0o600)).unwrap();
    let file = File::from(file);
    file.write_all_at(bytes, 0).unwrap();
    Arc::new(file)
}

fn made(sectors: usize, seed: u8) -> Made {
    let content: Vec<u8> = (0..sectors * 512)
        .map(|n| (n / 512 * 7 + n % 251) as u8 ^ seed)
        .collect();
    let outboard = stored(&[]);
    let mut builder = Builder::new(outboard.try_clone().unwrap());
    for span in content.chunks(SPAN_BYTES as usize) {
        builder.push(span).unwrap();
    }
    let built = builder.finish().unwrap();
    Made {
        data: stored(&content),
        outboard,
        blocks: None,
        tree: Tree::new(built.hash, built.blob_bytes),
        content,
    }
}

/// The same, with the values of its blocks.
fn made_with_blocks(sectors: usize, seed: u8) -> Made {
    let mut made = made(sectors, seed);
    let blocks = stored(&[]);
    let builder = Builder::new(stored(&[]).try_clone().unwrap());
    let builder = builder.with_blocks(blocks.try_clone().unwrap());
    builder.build(&made.content[..]).unwrap();
    made.blocks = Some(blocks);
    made
}

/// Blobs of these sizes in sectors, the second and fourth with the values of their blocks;
/// or the others.
fn some(sizes: &[usize], even: bool) -> Vec<Made> {
    let numbered = sizes.iter().zip(1_u8..);
    let blobs = numbered.map(|(size, seed)| match (seed % 2 == 0) == even {
        true => made_with_blocks(*size, seed),
        false => made(*size, seed),
    });
    blobs.collect()
}

fn disk(blobs: &[Made]) -> ExtentDisk {
    let extents = blobs.iter().map(|made| Extent {
        file: Arc::clone(&made.data),
        offset_bytes: 0,
        length_bytes: made.content.len() as u64,
        blob: Some(Blob {
            tree: made.tree,
            outboard: Arc::clone(&made.outboard),
            blocks: made.blocks.clone(),
            partial: false,
        }),
    });
    ExtentDisk::new(extents.collect(), true).unwrap()
}

/// Each way of reading a disk that this host has.
fn backends(blobs: &[Made]) -> Vec<Box<dyn BlockBackend>> {
    let mut backends: Vec<Box<dyn BlockBackend>> = vec![Box::new(PlainDisk::new(disk(blobs)))];
    if let Ok(ring) = RingDisk::new(disk(blobs)) {
        backends.push(Box::new(ring));
    }
    if let Ok(ring) = RingDisk::without_shortcuts(disk(blobs)) {
        backends.push(Box::new(ring));
    }
    backends
}

fn flip(file: &File, at: f64, bit: u8) -> u64 {
    let length = file.metadata().unwrap().len();
    let offset = ((length as f64 * at) as u64).min(length - 1);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], offset).unwrap();
    offset
}

fn ticket(head: u16) -> Ticket {
    Ticket {
        head,
        status: GuestAddress(0),
        written: 0,
        writes: false,
    }
}

fn begin(
    backend: &mut dyn BlockBackend,
    memory: &GuestMemory,
    head: u16,
    range: (u64, usize),
) -> Option<io::Result<()>> {
    let mut buffers = Buffers::default();
    // In two pieces, so that neither begins where a group does.
    let half = range.1 / 3;
    for (address, length) in [(0, half), (half, range.1 - half)] {
        if length > 0 {
            let address = GuestAddress(address as u64);
            buffers.push(memory, address, length).unwrap();
        }
    }
    backend.start(ticket(head), Operation::Read(range.0, buffers))
}

/// Waits for a request that is in flight.
fn completed(backend: &mut dyn BlockBackend) -> (Ticket, io::Result<()>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        backend.submit();
        if let Some(completed) = backend.complete() {
            return completed;
        }
        let event = backend.completions().unwrap();
        let mut polled = [PollFd::new(&event, PollFlags::IN)];
        let patience = Timespec::try_from(Duration::from_secs(60)).unwrap();
        assert_eq!(poll(&mut polled, Some(&patience)), Ok(1));
        backend.acknowledge();
    }
}

fn read(
    backend: &mut dyn BlockBackend,
    memory: &GuestMemory,
    range: (u64, usize),
) -> io::Result<Vec<u8>> {
    memory
        .write_slice(&vec![0xee; range.1], GuestAddress(0))
        .unwrap();
    begin(backend, memory, 0, range).unwrap_or_else(|| completed(backend).1)?;
    let mut bytes = vec![0; range.1];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    Ok(bytes)
}

fn corrupt(error: &io::Error) -> Corrupt {
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let inner = error.get_ref().unwrap();
    inner.downcast_ref::<Corrupt>().unwrap().clone()
}

fn whole(blobs: &[Made]) -> Vec<u8> {
    blobs.iter().flat_map(|made| made.content.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_read_of_whole_blobs_equals_their_content(
        sizes in proptest::collection::vec(1..5000_usize, 1..4),
        even in any::<bool>(),
        reads in proptest::collection::vec((0.0..1.0, 0.0..1.0, 0..3_u8), 1..16),
    ) {
        let blobs = some(&sizes, even);
        let whole = whole(&blobs);
        let memory = memory::create(MEMORY_BYTES).unwrap();
        for mut backend in backends(&blobs) {
            for (start, length, short) in &reads {
                let start = (whole.len() as f64 * start) as usize / 512 * 512;
                let length = ((whole.len() - start) as f64 * length) as usize / 512 * 512;
                let length = match short {
                    0 => length,
                    1 => length.min(4096),
                    _ => length % (GROUP_BYTES as usize + 512),
                };
                let bytes = read(&mut *backend, &memory, (start as u64, length)).unwrap();
                prop_assert!(bytes == whole[start..start + length]);
            }
        }
    }

    #[test]
    fn a_changed_bit_of_any_file_gives_an_error_or_the_right_bytes(
        sizes in proptest::collection::vec(1..5000_usize, 1..4),
        even in any::<bool>(),
        which in 0..9_usize,
        at in 0.0..1.0,
        bit in 0..8_u8,
    ) {
        let blobs = some(&sizes, even);
        let whole = whole(&blobs);
        let blob = &blobs[which / 3 % blobs.len()];
        let has_tree = blob.tree.geometry().outboard_bytes() > 0;
        let blocks = blob.blocks.as_ref().filter(|_| has_tree);
        let (file, wrong) = match (which % 3, blocks) {
            (0, _) if has_tree => (&blob.outboard, "its hash tree is wrong"),
            (1, Some(blocks)) => (blocks, "the hashes of its blocks are wrong"),
            _ => (&blob.data, "its data is wrong"),
        };
        let offset = flip(file, at, bit);
        let memory = memory::create(MEMORY_BYTES).unwrap();
        for mut backend in backends(&blobs) {
            let mut failed = 0;
            for start in (0..whole.len()).step_by(4096) {
                let length = 4096.min(whole.len() - start);
                match read(&mut *backend, &memory, (start as u64, length)) {
                    Ok(bytes) => prop_assert!(bytes == whole[start..start + length]),
                    Err(error) => {
                        let corrupt = corrupt(&error);
                        prop_assert_eq!(corrupt.hash, blob.tree.hash());
                        prop_assert_eq!(corrupt.first, failed == 0);
                        // Of the blob that is wrong, what was read.
                        let before = blobs[..which / 3 % blobs.len()].iter();
                        let before: usize = before.map(|made| made.content.len()).sum();
                        let first = start.saturating_sub(before) as u64;
                        let last = (start + length - 1 - before) as u64;
                        let spans = first / SPAN_BYTES..=last / SPAN_BYTES;
                        prop_assert!(spans.contains(&corrupt.span), "{corrupt:?}");
                        prop_assert_eq!(corrupt.what, wrong);
                        let found = match wrong {
                            // A wrong value in a node shows in the node below it.
                            "its hash tree is wrong" => true,
                            "its data is wrong" => {
                                let unit = blocks.map_or(GROUP_BYTES, |_| BLOCK_BYTES);
                                corrupt.offset == offset / unit * unit
                            }
                            _ => corrupt.offset / GROUP_BYTES == offset / 128,
                        };
                        prop_assert!(found, "{} {}", corrupt.offset, offset);
                        failed += 1;
                    }
                }
            }
            prop_assert!(failed > 0);
        }
    }
}

#[test]
fn what_was_verified_is_read_straight_into_guest_memory_from_then_on() {
    let blobs = [made(256, 3)];
    let memory = memory::create(MEMORY_BYTES).unwrap();
    let mut verified = disk(&blobs);
    let buffers = |length| {
        let mut buffers = Buffers::default();
        buffers.push(&memory, GuestAddress(0), length).unwrap();
        buffers
    };
    let first = verified.plan(Operation::Read(512, buffers(4096)));
    assert!(matches!(
        first[..],
        [Step {
            action: Action::Check(_),
            ..
        }]
    ));
    let mut plain = PlainDisk::new(disk(&blobs));
    read(&mut plain, &memory, (512, 4096)).unwrap();
    // The first group was verified, the second was not.
    verified = plain.into_disk();
    let known = verified.plan(Operation::Read(0, buffers(GROUP_BYTES as usize)));
    assert!(matches!(
        known[..],
        [Step {
            action: Action::Read(_),
            ..
        }]
    ));
    let partly = verified.plan(Operation::Read(8192, buffers(GROUP_BYTES as usize)));
    assert!(matches!(
        partly[..],
        [Step {
            action: Action::Check(_),
            ..
        }]
    ));
}

#[test]
fn a_short_read_verifies_no_more_than_its_blocks() {
    let blobs = [made_with_blocks(256, 3)];
    let buffers = |memory, length| {
        let mut buffers = Buffers::default();
        buffers.push(memory, GuestAddress(0), length).unwrap();
        buffers
    };
    let memory = memory::create(MEMORY_BYTES).unwrap();
    let is_known = |disk: &ExtentDisk, offset, length| {
        let steps = disk.plan(Operation::Read(offset, buffers(&memory, length)));
        steps
            .iter()
            .all(|step| matches!(step.action, Action::Read(_)))
    };
    let mut plain = PlainDisk::new(disk(&blobs));
    // Of the second group the last half of a block, and of the third the first block.
    read(&mut plain, &memory, (2 * GROUP_BYTES - 2048, 4096)).unwrap();
    let disk = plain.into_disk();
    let known = 2 * GROUP_BYTES - BLOCK_BYTES;
    assert!(is_known(&disk, known, 2 * BLOCK_BYTES as usize));
    assert!(!is_known(&disk, known - 512, 512));
    assert!(!is_known(&disk, known + 2 * BLOCK_BYTES, 512));
    // More than a group is verified by groups.
    let mut plain = PlainDisk::new(disk);
    read(
        &mut plain,
        &memory,
        (3 * GROUP_BYTES + 512, GROUP_BYTES as usize + 512),
    )
    .unwrap();
    assert!(is_known(
        &plain.into_disk(),
        3 * GROUP_BYTES,
        2 * GROUP_BYTES as usize
    ));
}

#[test]
fn block_values_that_end_early_are_corrupt() {
    let blobs = [made_with_blocks(256, 4)];
    blobs[0]
        .blocks
        .as_ref()
        .unwrap()
        .set_len(128 + 100)
        .unwrap();
    let memory = memory::create(MEMORY_BYTES).unwrap();
    for mut backend in backends(&blobs) {
        assert!(read(&mut *backend, &memory, (0, 4096)).is_ok());
        let error = read(&mut *backend, &memory, (GROUP_BYTES, 4096)).unwrap_err();
        assert_eq!(corrupt(&error).what, "it ends");
    }
}

#[test]
fn a_blob_whose_file_ends_early_is_corrupt() {
    let blobs = [made(256, 4)];
    blobs[0].data.set_len(GROUP_BYTES + 100).unwrap();
    let memory = memory::create(MEMORY_BYTES).unwrap();
    for mut backend in backends(&blobs) {
        assert!(read(&mut *backend, &memory, (0, 4096)).is_ok());
        let error = read(&mut *backend, &memory, (GROUP_BYTES, 4096)).unwrap_err();
        assert_eq!(corrupt(&error).what, "it ends");
    }
}

#[test]
fn requests_in_flight_have_a_bounded_number_of_groups_in_memory() {
    let blobs = [made(8192, 5)];
    let memory = memory::create(MEMORY_BYTES).unwrap();
    let ring = RingDisk::without_shortcuts(disk(&blobs)).map_err(|(_, error)| error);
    let Some(mut ring) = ring::tests::made(ring) else {
        return;
    };
    for round in 0..3 {
        let mut started = 0;
        while ring.has_room() {
            // Less than a step, across two groups.
            let offset = u64::from(started) * 3 * GROUP_BYTES + GROUP_BYTES - 512;
            let begun = begin(&mut ring, &memory, started, (offset % (4 << 20), 1024));
            assert!(begun.is_none() || round > 0);
            started += 1;
            assert!(usize::from(started) <= MAX_GROUPS);
            if begun.is_some() {
                break;
            }
        }
        assert!(started > 0);
        if round == 0 {
            // Two groups each, and room for one large step is kept.
            assert_eq!(usize::from(started), (MAX_GROUPS - STEP_GROUPS) / 2 + 1);
            for _ in 0..started {
                completed(&mut ring).1.unwrap();
            }
        }
        assert!(ring.wait(Duration::from_secs(60)));
        assert!(ring.has_room());
    }
}
