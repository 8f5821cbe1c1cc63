//! Reads of a blob through the VMM's own backends, verified and not.
//!
//! There is no guest: this is the host's side of a request, from the queue's end to guest
//! memory. Each row has a disk of its own. What is read first is verified then; what is read
//! again is not.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostagent::store::Blob as StoredBlob;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Advice, fadvise};
use vm_memory::GuestAddress;
use vmm::block::buffers::Buffers;
use vmm::block::extents::{Extent, ExtentDisk};
use vmm::block::verified::Blob;
use vmm::block::{self, BlockBackend, Operation, Ticket};
use vmm::memory::{self, GuestMemory};

use super::random::mixed;
use crate::comparison::{Better, Group};
use crate::error::{BenchError, host};

/// As much as Linux reads ahead at a time.
const SEQUENTIAL_BYTES: u64 = 128 << 10;
const RANDOM_BYTES: u64 = 4096;
/// A group of the hash tree: random reads touch each once.
const GROUP_BYTES: u64 = 16 << 10;
/// Requests at a time.
const DEPTH: u16 = 8;
/// How often a turn reads it all, verified and not by turns: a disk that others use, too, is
/// not as fast at any time.
const PASSES: usize = 5;
/// Longer than a disk takes for one.
const PATIENCE: Duration = Duration::from_secs(60);

/// The title of the group.
pub const TITLE: &str = "reads of a blob, verified, beside unverified";
/// What the rows are called; each is measured verified and not.
pub const ROWS: [&str; 6] = [
    "in sequence, again",
    "random 4 KiB, again",
    "in sequence, first, from the page cache",
    "random 4 KiB, first, from the page cache",
    "in sequence, first, from the disk",
    "random 4 KiB, first, from the disk",
];

/// MiB/s of each row, verified and not.
pub type Turn = [[f64; 2]; ROWS.len()];

/// Measures each row.
pub fn turn(blob: &StoredBlob) -> Result<Turn, BenchError> {
    let memory = memory::create(64 << 20)
        .map_err(|error| BenchError::Prepare(format!("no guest memory: {error}")))?;
    let mut turn = Turn::default();
    let bytes = blob.identity.bytes;
    let in_sequence: Vec<(u64, u64)> = (0..bytes / SEQUENTIAL_BYTES)
        .map(|index| (index * SEQUENTIAL_BYTES, SEQUENTIAL_BYTES))
        .collect();
    let random = shuffled(bytes / GROUP_BYTES);
    let random: Vec<(u64, u64)> = random
        .map(|group| (group * GROUP_BYTES, RANDOM_BYTES))
        .collect();
    // What has been written a moment ago comes slower from some disks, the first time.
    advise(&blob.data, Advice::DontNeed)?;
    warm(&blob.data)?;
    for (row, values) in turn.iter_mut().enumerate() {
        let reads = if row % 2 == 0 { &in_sequence } else { &random };
        let mut seconds = [0.0; 2];
        for pass in 0..PASSES {
            // Neither is always the first.
            for which in [pass % 2, 1 - pass % 2] {
                seconds[which] += measure(row, blob, which == 0, &memory, reads)?;
            }
        }
        let read: u64 = reads.iter().map(|(_, length)| length).sum();
        let mib = (read * PASSES as u64) as f64 / f64::from(1 << 20);
        *values = seconds.map(|seconds| mib / seconds);
    }
    Ok(turn)
}

/// The seconds that these reads take, by a disk that has just been opened.
fn measure(
    row: usize,
    blob: &StoredBlob,
    verified: bool,
    memory: &GuestMemory,
    reads: &[(u64, u64)],
) -> Result<f64, BenchError> {
    let mut backend = block::open(disk(blob, verified)?);
    match row / 2 {
        0 => pass(&mut *backend, memory, reads)?,
        1 => warm(&blob.data)?,
        _ => {
            advise(&blob.data, Advice::DontNeed)?;
            advise_beside(blob, Advice::DontNeed)?;
        }
    }
    let clock = Instant::now();
    // As before a start.
    if verified {
        advise_beside(blob, Advice::WillNeed)?;
    }
    pass(&mut *backend, memory, reads)?;
    Ok(clock.elapsed().as_secs_f64())
}

/// For what verifies a blob.
fn advise_beside(blob: &StoredBlob, advice: Advice) -> Result<(), BenchError> {
    advise(&blob.outboard, advice)?;
    blob.blocks.iter().try_for_each(|file| advise(file, advice))
}

/// Says how a file is read next.
pub fn advise(file: &File, advice: Advice) -> Result<(), BenchError> {
    let advised = fadvise(file, 0, None, advice).map_err(io::Error::from);
    advised.map_err(host("say what is read next"))
}

/// The rates of all turns.
pub fn rates(turns: &[Turn]) -> Group {
    let mut group = Group {
        title: TITLE.to_owned(),
        unit: "MiB/s".to_owned(),
        better: Better::More,
        rows: Vec::new(),
    };
    for (row, name) in ROWS.iter().enumerate() {
        let values = [0, 1].map(|which| turns.iter().map(|turn| turn[row][which]).collect());
        group.push(*name, values.into());
    }
    group
}

fn disk(blob: &StoredBlob, verified: bool) -> Result<ExtentDisk, BenchError> {
    let again = |file: &File| file.try_clone().map(Arc::new).map_err(host("use the blob"));
    let extent = Extent {
        file: again(&blob.data)?,
        offset_bytes: 0,
        length_bytes: blob.identity.bytes,
        blob: match verified {
            true => Some(Blob {
                tree: blob.tree(),
                outboard: again(&blob.outboard)?,
                blocks: blob.blocks.as_ref().map(again).transpose()?,
                partial: false,
            }),
            false => None,
        },
    };
    ExtentDisk::new(vec![extent], true)
        .ok_or_else(|| BenchError::Prepare("the blob is too large".into()))
}

/// Makes sure that all of a file is in the page cache.
fn warm(file: &File) -> Result<(), BenchError> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        match file
            .read_at(&mut buffer, offset)
            .map_err(host("read the blob"))?
        {
            0 => return Ok(()),
            count => offset += count as u64,
        }
    }
}

/// All numbers below `count`, the same each time, in no order.
fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    numbers.sort_by_key(|number| mixed(*number));
    numbers.into_iter()
}

fn pass(
    backend: &mut dyn BlockBackend,
    memory: &GuestMemory,
    reads: &[(u64, u64)],
) -> Result<(), BenchError> {
    let mut free: Vec<u16> = (0..DEPTH).collect();
    let mut reads = reads.iter();
    let mut left = reads.len();
    while left > 0 {
        while let (Some(head), true) = (free.last().copied(), backend.has_room()) {
            let Some((offset, length)) = reads.next() else {
                break;
            };
            let mut buffers = Buffers::default();
            let address = GuestAddress(u64::from(head) * SEQUENTIAL_BYTES);
            let pushed = buffers.push(memory, address, *length as usize);
            pushed.map_err(|error| BenchError::Prepare(error.to_string()))?;
            let ticket = Ticket {
                head,
                status: GuestAddress(0),
                written: 0,
                writes: false,
            };
            match backend.start(ticket, Operation::Read(*offset, buffers)) {
                Some(result) => {
                    result.map_err(host("read the blob"))?;
                    left -= 1;
                }
                None => {
                    free.pop();
                }
            }
        }
        backend.submit();
        let mut completed = false;
        while let Some((ticket, result)) = backend.complete() {
            result.map_err(host("read the blob"))?;
            free.push(ticket.head);
            left -= 1;
            completed = true;
        }
        // What goes on after a part of it is done.
        backend.submit();
        if left > 0 && !completed && free.len() < usize::from(DEPTH) {
            if let Some(event) = backend.completions() {
                let mut polled = [PollFd::new(&event, PollFlags::IN)];
                let timeout = Timespec::try_from(PATIENCE).ok();
                let ready = poll(&mut polled, timeout.as_ref());
                ready
                    .map_err(io::Error::from)
                    .map_err(host("wait for the disk"))?;
            }
            backend.acknowledge();
        }
    }
    Ok(())
}
