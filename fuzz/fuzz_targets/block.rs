//! virtio-blk under a driver that does anything, over a small disk in memory.
#![no_main]

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Unstructured;
use fuzz::acts::Game;
use fuzz::{files, memory};
use libfuzzer_sys::fuzz_target;
use outboard::{Builder, Tree};
use vmm::block::extents::{Extent, ExtentDisk};
use vmm::block::plain::PlainDisk;
use vmm::block::verified::Blob;
use vmm::block::{BlockBackend, Operation, Ticket};
use vmm::devices::virtio::block::Block;
use vmm::devices::virtio::limiter::Limits;
use vmm::devices::virtio::mock::MockDriver;

/// Sectors of each of the two files that the disk is made of.
const SECTORS: u64 = 40;
/// Requests in flight at most.
const ROOM: usize = 6;

/// How the disk behaves at present.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    AtOnce,
    Later,
    Full,
    Broken,
}

/// A disk that may take its time.
struct Moody {
    disk: PlainDisk,
    mood: Mutable,
    in_flight: VecDeque<(Ticket, Operation)>,
}

/// Seen by the disk and by who changes it, both in one thread.
#[derive(Clone)]
struct Mutable(Rc<Cell<Mood>>);

// SAFETY: a target has one thread, and the device never leaves it.
unsafe impl Send for Mutable {}

impl Moody {
    fn run(&mut self, ticket: Ticket, operation: Operation) -> io::Result<()> {
        match self.mood.0.get() {
            Mood::Full => Err(io::ErrorKind::StorageFull.into()),
            Mood::Broken => Err(io::ErrorKind::Other.into()),
            _ => self.disk.start(ticket, operation).expect("it is plain"),
        }
    }
}

impl BlockBackend for Moody {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn start(&mut self, ticket: Ticket, operation: Operation) -> Option<io::Result<()>> {
        assert!(self.has_room());
        if self.mood.0.get() == Mood::Later {
            self.in_flight.push_back((ticket, operation));
            return None;
        }
        Some(self.run(ticket, operation))
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < ROOM
    }

    fn complete(&mut self) -> Option<(Ticket, io::Result<()>)> {
        let (ticket, operation) = self.in_flight.pop_front()?;
        Some((ticket, self.run(ticket, operation)))
    }

    fn wait(&mut self, _: Duration) -> bool {
        while self.complete().is_some() {}
        true
    }
}

/// A header: type, reserved, sector; or a segment of a discard.
fn payload(u: &mut Unstructured) -> arbitrary::Result<Vec<u8>> {
    let small = |u: &mut Unstructured, most| match u.int_in_range(0..=15)? {
        0 => u.arbitrary::<u64>(),
        _ => u.int_in_range(0..=most),
    };
    let mut bytes = Vec::new();
    if u.ratio(3, 4)? {
        bytes.extend((small(u, 14)? as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(small(u, 2 * SECTORS)?.to_le_bytes());
    } else {
        bytes.extend(small(u, 2 * SECTORS)?.to_le_bytes());
        bytes.extend((small(u, 2 * SECTORS)? as u32).to_le_bytes());
        bytes.extend((small(u, 1)? as u32).to_le_bytes());
    }
    Ok(bytes)
}

/// A disk of two blobs, which are verified as they are read.
fn disk_of_blobs() -> ExtentDisk {
    let blob = |sectors: u64| {
        let content: Vec<u8> = (0..sectors * 512).map(|n| (n / 3) as u8).collect();
        let [outboard, blocks] = [(), ()].map(|()| files::with(&[]));
        let mut builder = Builder::new(outboard.try_clone().expect("a descriptor"))
            .with_blocks(blocks.try_clone().expect("a descriptor"));
        builder.push(&content).expect("a span");
        let built = builder.finish().expect("a tree");
        Extent {
            file: Arc::new(files::with(&content)),
            offset_bytes: 0,
            length_bytes: sectors * 512,
            blob: Some(Blob {
                tree: Tree::new(built.hash, built.blob_bytes),
                outboard: Arc::new(outboard),
                blocks: Some(Arc::new(blocks)),
                partial: false,
            }),
        }
    };
    // One that is less than a group, and one of several.
    let extents = vec![blob(SECTORS / 2), blob(2 * SECTORS)];
    ExtentDisk::new(extents, true).expect("a small disk")
}

fn disk(read_only: bool) -> ExtentDisk {
    if read_only {
        return disk_of_blobs();
    }
    let part = |file: &Arc<File>, first: u64, sectors: u64| Extent {
        file: Arc::clone(file),
        offset_bytes: first * 512,
        length_bytes: sectors * 512,
        blob: None,
    };
    let content: Vec<u8> = (0..SECTORS * 512).map(|n| n as u8).collect();
    let (a, b) = (
        Arc::new(files::with(&content)),
        Arc::new(files::with(&content)),
    );
    let extents = vec![
        part(&a, 3, 10),
        part(&b, 0, SECTORS),
        part(&a, 13, SECTORS - 13),
        part(&a, 0, 3),
    ];
    ExtentDisk::new(extents, false).expect("a small disk")
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let read_only = u.ratio(1, 8).unwrap_or(false);
    let mood = Mutable(Rc::new(Cell::new(Mood::AtOnce)));
    let backend = Box::new(Moody {
        disk: PlainDisk::new(disk(read_only)),
        mood: mood.clone(),
        in_flight: VecDeque::new(),
    });
    let serial = *b"0123456789abcdefghij";
    let mut driver = MockDriver::in_memory(memory::for_driver(), |events| {
        let limits = Limits::default();
        Block::new("blk0".to_owned(), serial, backend, limits, events).expect("a timer")
    });
    // Segments of limited size and number, flush; and where it may be written, discard
    // and write zeroes.
    let features = 1 << 1 | 1 << 2 | 1 << 9;
    let more = if read_only { 1 << 5 } else { 1 << 13 | 1 << 14 };
    let game = Game {
        queues: 1,
        features: 1 << 29 | features | more,
        payload: &payload,
        backend: &mut |u| {
            let moods = [
                Mood::AtOnce,
                Mood::Later,
                Mood::Later,
                Mood::Full,
                Mood::Broken,
            ];
            mood.0.set(*u.choose(&moods)?);
            Ok(())
        },
    };
    game.play(&mut driver, &mut u);
});
