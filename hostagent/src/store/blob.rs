//! A blob under construction: its bytes, and the hash tree beside them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use outboard::{BlobHash, Builder, Geometry, SPAN_BYTES};
use serde::{Deserialize, Serialize};

use super::durable::{Unsynced, begin_write_back};

/// The file of a blob's bytes, in the directory of the blob.
pub(super) const DATA: &str = "data";
/// The file of its hash tree, beside it.
pub(super) const OUTBOARD: &str = "outboard";
/// The file of the values of its blocks, beside these. Not all blobs have one.
pub(super) const BLOCKS: &str = "blocks";

/// What a blob is: its hash says all, and its length spares looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobIdentity {
    /// Its BLAKE3 hash.
    pub hash: BlobHash,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A blob that is being written, in any order.
///
/// A thread of its own hashes what has been written, a span behind: it reads the spans
/// again, which are in memory still. So hashing costs the writer no time where there is
/// a second processor. What is written over afterwards is hashed once more at the end. A
/// small blob is hashed at the end alone, sooner than a thread has started and its start,
/// which is written last, is hashed twice.
#[derive(Debug)]
pub struct BlobWriter {
    data: File,
    outboard: File,
    /// Where the values of its blocks go, if it has them.
    blocks: Option<File>,
    position: u64,
    length: u64,
    /// Spans that the hashing thread was told of: all of them before this one.
    told: u64,
    /// Those of them that were written to afterwards.
    rewritten: BTreeSet<u64>,
    hashing: Option<Hashing>,
}

/// The thread that hashes.
#[derive(Debug)]
struct Hashing {
    spans: Sender<u64>,
    thread: JoinHandle<io::Result<Builder>>,
}

/// A blob of fewer spans is hashed at the end alone.
const SPANS_BEFORE_THREAD: u64 = 4;
/// So many spans are handed to the disk at a time: few enough that it has work soon, and
/// enough to be one large write.
const SPANS_TO_WRITE_BACK: u64 = 4;

impl BlobWriter {
    /// Creates the blob's files in `directory`, where they must not exist.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let data = create(directory, DATA)?;
        let outboard = create(directory, OUTBOARD)?;
        Ok(Self {
            data,
            outboard,
            blocks: None,
            position: 0,
            length: 0,
            told: 0,
            rewritten: BTreeSet::new(),
            hashing: None,
        })
    }

    /// The same for a blob that guests read here and there: with the values of its blocks.
    pub fn for_disk(directory: &Path) -> io::Result<Self> {
        let blocks = Some(create(directory, BLOCKS)?);
        let writer = Self::create(directory)?;
        Ok(Self { blocks, ..writer })
    }

    /// Completes the hash tree, and leaves it to `unsynced` to bring its files to disk.
    pub(super) fn finish(mut self, unsynced: &mut Unsynced) -> io::Result<BlobIdentity> {
        let mut builder = match self.hashing.take() {
            Some(Hashing { spans, thread }) => {
                drop(spans);
                let hashed = thread.join();
                hashed.map_err(|_| io::Error::other("the hashing thread panicked"))??
            }
            None => self.builder()?,
        };
        let geometry = Geometry::of(self.length);
        let mut buffer = vec![0; SPAN_BYTES.min(self.length) as usize];
        let rewritten = self.rewritten.into_iter().map(|index| (index, true));
        let rest = (self.told..geometry.spans()).map(|index| (index, false));
        for (index, again) in rest.chain(rewritten) {
            let span = &mut buffer[..geometry.span_bytes(index) as usize];
            self.data.read_exact_at(span, index * SPAN_BYTES)?;
            match again {
                true => builder.replace(index, span)?,
                false => builder.push(span)?,
            }
        }
        let built = builder.finish()?;
        for file in [self.outboard, self.data].into_iter().chain(self.blocks) {
            unsynced.add(file);
        }
        Ok(BlobIdentity {
            hash: built.hash,
            bytes: built.blob_bytes,
        })
    }
}

impl BlobWriter {
    fn builder(&self) -> io::Result<Builder> {
        let builder = Builder::new(self.outboard.try_clone()?);
        Ok(match &self.blocks {
            Some(blocks) => builder.with_blocks(blocks.try_clone()?),
            None => builder,
        })
    }

    /// Tells the thread of the spans that are written.
    fn tell(&mut self) -> io::Result<()> {
        let hashing = match self.hashing.take() {
            Some(hashing) => self.hashing.insert(hashing),
            None => {
                let (spans, received) = mpsc::channel();
                let read = self.data.try_clone()?;
                let builder = self.builder()?;
                let thread = std::thread::Builder::new()
                    .name("hash".to_owned())
                    .spawn(move || follow(&read, builder, &received))?;
                self.hashing.insert(Hashing { spans, thread })
            }
        };
        while (self.told + 1) * SPAN_BYTES <= self.length {
            // If nobody listens, that is told by `finish`.
            let _ = hashing.spans.send(self.told);
            self.told += 1;
        }
        Ok(())
    }
}

fn create(directory: &Path, name: &str) -> io::Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true);
    options.open(directory.join(name))
}

/// Hashes each span it hears of, in order. The disk need not wait for the last of them
/// before it writes the first.
fn follow(data: &File, mut builder: Builder, spans: &Receiver<u64>) -> io::Result<Builder> {
    let mut span = vec![0; SPAN_BYTES as usize];
    for index in spans {
        data.read_exact_at(&mut span, index * SPAN_BYTES)?;
        builder.push(&span)?;
        let hashed = index + 1;
        if hashed.is_multiple_of(SPANS_TO_WRITE_BACK) {
            let bytes = SPANS_TO_WRITE_BACK * SPAN_BYTES;
            begin_write_back(data, hashed * SPAN_BYTES - bytes, bytes);
        }
    }
    Ok(builder)
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.data.write_at(bytes, self.position)?;
        let end = self.position + written as u64;
        if written > 0 && self.position < self.told * SPAN_BYTES {
            let last = (end - 1) / SPAN_BYTES;
            self.rewritten
                .extend(self.position / SPAN_BYTES..self.told.min(last + 1));
        }
        self.position = end;
        self.length = self.length.max(end);
        if self.length >= SPANS_BEFORE_THREAD * SPAN_BYTES {
            self.tell()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for BlobWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Blob;

    #[test]
    fn existing_files_are_never_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join(DATA);
        std::fs::write(&data, "old").unwrap();
        assert!(BlobWriter::create(directory.path()).is_err());
        assert_eq!(std::fs::read(data).unwrap(), b"old");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_order_of_writes_has_the_hash_of_the_file(
            writes in proptest::collection::vec((0..4_000_000_u64, 0..1_500_000_usize, any::<bool>()), 0..6),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut writer = BlobWriter::for_disk(directory.path()).unwrap();
            for (index, (offset, length, append)) in writes.into_iter().enumerate() {
                let to = if append { SeekFrom::End(0) } else { SeekFrom::Start(offset) };
                writer.seek(to).unwrap();
                let bytes: Vec<u8> = (0..length).map(|i| (i + index) as u8).collect();
                writer.write_all(&bytes).unwrap();
            }
            let mut unsynced = Unsynced::default();
            let identity = writer.finish(&mut unsynced).unwrap();
            unsynced.sync().unwrap();
            let data = std::fs::read(directory.path().join(DATA)).unwrap();
            prop_assert_eq!(identity.hash, BlobHash::of(&data));
            prop_assert_eq!(identity.bytes, data.len() as u64);
            let length = |name| directory.path().join(name).metadata().unwrap().len();
            let geometry = Geometry::of(identity.bytes);
            prop_assert_eq!(length(OUTBOARD), geometry.outboard_bytes());
            prop_assert_eq!(length(BLOCKS), geometry.block_values_bytes());
            let open = |name| File::open(directory.path().join(name)).unwrap();
            let blob = Blob {
                identity,
                data: open(DATA),
                outboard: open(OUTBOARD),
                blocks: Some(open(BLOCKS)),
            };
            blob.read_all(|_| true).unwrap();
        }
    }
}
