//! A disk made of ranges of files, or of blobs, one after another.

use std::fs::File;
use std::sync::Arc;

use super::buffers::Buffers;
use super::lazy::Piece;
use super::step::{Action, Step};
use super::verified::{Blob, Verification};
use super::{Operation, Range};

/// A range of a file.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Where the bytes are.
    pub file: Arc<File>,
    /// From where on, in bytes.
    pub offset_bytes: u64,
    /// How many.
    pub length_bytes: u64,
    /// What it is, if it is to be verified: all of a blob. Of a disk all extents are, or
    /// none, and it is read-only.
    pub blob: Option<Blob>,
}

/// The disk.
#[derive(Debug)]
pub struct ExtentDisk {
    extents: Vec<Placed>,
    files: Vec<Arc<File>>,
    size_bytes: u64,
    read_only: bool,
    /// Boxed: most disks have no blobs, and results carry disks.
    verification: Box<Verification>,
}

#[derive(Debug)]
struct Placed {
    /// Where on the disk the extent starts.
    start: u64,
    length: u64,
    /// Index into the disk's files.
    file: usize,
    /// Where in the file it starts.
    offset: u64,
    /// Its number as a blob.
    blob: Option<usize>,
    /// Parts of it may not be there yet.
    partial: bool,
}

impl ExtentDisk {
    /// Puts `extents` one after another; `None` if they are larger than a file
    /// offset can say.
    pub fn new(extents: Vec<Extent>, read_only: bool) -> Option<Self> {
        let mut start = 0_u64;
        let mut placed = Vec::with_capacity(extents.len());
        let mut files: Vec<Arc<File>> = Vec::new();
        let mut verification = Box::<Verification>::default();
        // Where in `files` each file is, by its address.
        let mut known = std::collections::HashMap::new();
        let mut place = |file: &Arc<File>| {
            *known.entry(Arc::as_ptr(file)).or_insert_with(|| {
                files.push(Arc::clone(file));
                files.len() - 1
            })
        };
        for extent in extents {
            let end = start.checked_add(extent.length_bytes)?;
            let file = place(&extent.file);
            let partial = extent.blob.as_ref().is_some_and(|blob| blob.partial);
            let blob = extent.blob.map(|blob| {
                let outboard = place(&blob.outboard);
                let blocks = blob.blocks.as_ref().map(&mut place);
                verification.add(blob.tree, file, outboard, blocks)
            });
            placed.push(Placed {
                start,
                length: extent.length_bytes,
                file,
                offset: extent.offset_bytes,
                blob,
                partial,
            });
            start = end;
        }
        i64::try_from(start).ok()?;
        Some(Self {
            extents: placed,
            files,
            size_bytes: start,
            read_only,
            verification,
        })
    }

    /// The length of all extents together.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether the disk must not be written.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The files, each once; [`Step::file`] is an index into them.
    pub fn files(&self) -> &[Arc<File>] {
        &self.files
    }

    /// Where its extents are, and of which parts may be missing.
    pub fn presence(&self) -> Vec<Piece> {
        let piece = |placed: &Placed| Piece {
            start: placed.start,
            length: placed.length,
            partial: placed.partial,
        };
        self.extents.iter().map(piece).collect()
    }

    /// What is known of its blobs.
    pub fn verification(&mut self) -> &mut Verification {
        &mut self.verification
    }

    /// Prepares a step for its first call.
    pub fn begin(&mut self, step: &mut Step) {
        if let Action::Check(check) = &mut step.action {
            self.verification.begin(check);
        }
    }

    /// The steps of `operation`, the first one last.
    pub fn plan(&self, operation: Operation) -> Vec<Step> {
        let mut steps = Vec::with_capacity(1);
        match operation {
            Operation::Read(offset, buffers) => self.plan_read(offset, buffers, &mut steps),
            Operation::Write(offset, mut buffers) => {
                let length = buffers.bytes();
                self.cut(Range { offset, length }, &mut steps, |bytes| {
                    Action::Write(buffers.split_off_front(bytes))
                });
            }
            Operation::Flush if self.read_only => {}
            Operation::Flush => steps.extend((0..self.files.len()).map(|file| Step {
                file,
                offset: 0,
                action: Action::Sync,
            })),
            Operation::Discard(ranges) => {
                for range in ranges {
                    self.cut(range, &mut steps, Action::Discard);
                }
            }
            Operation::WriteZeroes { range, unmap: true } => {
                self.cut(range, &mut steps, Action::ZeroByHole);
            }
            Operation::WriteZeroes {
                range,
                unmap: false,
            } => self.cut(range, &mut steps, Action::Zero),
        }
        steps.reverse();
        steps
    }

    fn plan_read(&self, offset: u64, mut buffers: Buffers, steps: &mut Vec<Step>) {
        let length = buffers.bytes();
        let range = Range { offset, length };
        let unknown = self.pieces(range).any(|(placed, inside, bytes)| {
            let blob = placed.blob;
            blob.is_some_and(|blob| !self.verification.is_known(blob, inside, bytes))
        });
        for (placed, inside, bytes) in self.pieces(range) {
            let part = buffers.split_off_front(bytes);
            match placed.blob.filter(|_| unknown) {
                Some(blob) => self.verification.plan(blob, inside, part, steps),
                None => steps.push(Step {
                    file: placed.file,
                    offset: placed.offset + inside,
                    action: Action::Read(part),
                }),
            }
        }
    }

    /// Cuts `range` at the borders of extents and makes each piece a step.
    fn cut(&self, range: Range, steps: &mut Vec<Step>, mut action: impl FnMut(u64) -> Action) {
        for (placed, inside, bytes) in self.pieces(range) {
            steps.push(Step {
                file: placed.file,
                offset: placed.offset + inside,
                action: action(bytes),
            });
        }
    }

    /// The extents that `range` lies in, where in each its piece begins, and how long
    /// that is.
    fn pieces(&self, range: Range) -> impl Iterator<Item = (&Placed, u64, u64)> {
        let Range {
            mut offset,
            mut length,
        } = range;
        let first = self
            .extents
            .partition_point(|placed| placed.start + placed.length <= offset);
        self.extents[first..].iter().map_while(move |placed| {
            if length == 0 {
                return None;
            }
            let inside = offset - placed.start;
            let bytes = length.min(placed.length - inside);
            offset += bytes;
            length -= bytes;
            Some((placed, inside, bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::block::buffers::Buffers;
    use crate::block::plain::PlainDisk;
    use crate::block::{BlockBackend, Ticket};
    use crate::memory::{self, GuestMemory};

    fn file(content: &[u8]) -> Arc<File> {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    fn buffers(memory: &GuestMemory, length: usize) -> Buffers {
        let mut buffers = Buffers::default();
        buffers.push(memory, GuestAddress(0), length).unwrap();
        buffers
    }

    fn run(disk: ExtentDisk, operation: Operation) -> std::io::Result<()> {
        let ticket = Ticket {
            head: 0,
            status: GuestAddress(0),
            written: 0,
            writes: false,
        };
        PlainDisk::new(disk).start(ticket, operation).unwrap()
    }

    proptest! {
        #[test]
        fn any_read_equals_the_concatenation(
            ranges in proptest::collection::vec((0_u64..1000, 1_u64..1000), 1..8),
            start in 0.0..1.0,
            length in 0.0..1.0,
        ) {
            let content: Vec<u8> = (0..2000_u32).map(|n| (n * 7 % 253) as u8).collect();
            let file = file(&content);
            let mut whole: Vec<u8> = Vec::new();
            let extents = ranges
                .iter()
                .map(|(offset, length)| {
                    whole.extend(&content[*offset as usize..(offset + length) as usize]);
                    Extent { file: file.clone(), offset_bytes: *offset, length_bytes: *length, blob: None }
                })
                .collect();
            let disk = ExtentDisk::new(extents, true).unwrap();
            prop_assert_eq!(disk.size_bytes(), whole.len() as u64);
            let start = (whole.len() as f64 * start) as usize;
            let length = ((whole.len() - start) as f64 * length) as usize;
            let memory = memory::create(1 << 16).unwrap();
            run(disk, Operation::Read(start as u64, buffers(&memory, length))).unwrap();
            let mut read = vec![0; length];
            memory.read_slice(&mut read, GuestAddress(0)).unwrap();
            prop_assert_eq!(&read, &whole[start..start + length]);
        }
    }

    #[test]
    fn a_write_across_extents_lands_in_both_files() {
        let (a, b) = (file(&[0; 100]), file(&[0; 100]));
        let extent = |file: &Arc<File>, offset_bytes| Extent {
            file: file.clone(),
            offset_bytes,
            length_bytes: 50,
            blob: None,
        };
        let disk = ExtentDisk::new(vec![extent(&a, 50), extent(&b, 0)], false).unwrap();
        let memory = memory::create(1 << 16).unwrap();
        memory.write_slice(&[7; 20], GuestAddress(0)).unwrap();
        run(disk, Operation::Write(40, buffers(&memory, 20))).unwrap();
        let mut tail = [0; 10];
        a.read_exact_at(&mut tail, 90).unwrap();
        assert_eq!(tail, [7; 10]);
        b.read_exact_at(&mut tail, 0).unwrap();
        assert_eq!(tail, [7; 10]);
        b.read_exact_at(&mut tail, 10).unwrap();
        assert_eq!(tail, [0; 10]);
    }

    #[test]
    fn a_flush_syncs_each_file_once_and_none_that_is_only_read() {
        let (a, b) = (file(&[0; 100]), file(&[0; 100]));
        let extents: Vec<_> = [&a, &b, &a, &b]
            .map(|file| Extent {
                file: file.clone(),
                offset_bytes: 0,
                length_bytes: 50,
                blob: None,
            })
            .into();
        let disk = ExtentDisk::new(extents.clone(), false).unwrap();
        assert_eq!(disk.files().len(), 2);
        assert_eq!(disk.plan(Operation::Flush).len(), 2);
        let disk = ExtentDisk::new(extents, true).unwrap();
        assert!(disk.plan(Operation::Flush).is_empty());
    }

    #[test]
    fn a_file_that_has_shrunk_is_an_error() {
        let file = file(&[1; 99]);
        let extent = Extent {
            file,
            offset_bytes: 0,
            length_bytes: 100,
            blob: None,
        };
        let disk = ExtentDisk::new(vec![extent], true).unwrap();
        let memory = memory::create(1 << 16).unwrap();
        let error = run(disk, Operation::Read(0, buffers(&memory, 100))).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
