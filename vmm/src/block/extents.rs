//! A disk made of ranges of files, one after another.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::BlockBackend;
use super::buffers::Buffers;

/// A range of a file.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Where the bytes are.
    pub file: Arc<File>,
    /// From where on, in bytes.
    pub offset_bytes: u64,
    /// How many.
    pub length_bytes: u64,
}

/// The disk.
#[derive(Debug)]
pub struct ExtentDisk {
    extents: Vec<Placed>,
    size_bytes: u64,
    read_only: bool,
}

#[derive(Debug)]
struct Placed {
    /// Where on the disk the extent starts.
    start: u64,
    extent: Extent,
}

impl ExtentDisk {
    /// Puts `extents` one after another; `None` if they are larger than a file
    /// offset can say.
    pub fn new(extents: Vec<Extent>, read_only: bool) -> Option<Self> {
        let mut start = 0_u64;
        let mut placed = Vec::with_capacity(extents.len());
        for extent in extents {
            let end = start.checked_add(extent.length_bytes)?;
            placed.push(Placed { start, extent });
            start = end;
        }
        i64::try_from(start).ok()?;
        Some(Self {
            extents: placed,
            size_bytes: start,
            read_only,
        })
    }

    /// Cuts `buffers` at the borders of extents and hands each piece on.
    fn for_each(
        &self,
        mut offset: u64,
        mut buffers: Buffers,
        transfer: impl Fn(Buffers, &File, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let first = self
            .extents
            .partition_point(|placed| placed.start + placed.extent.length_bytes <= offset);
        for Placed { start, extent } in &self.extents[first..] {
            if buffers.bytes() == 0 {
                return Ok(());
            }
            let inside = offset - start;
            let piece = buffers.split_off_front(extent.length_bytes - inside);
            let bytes = piece.bytes();
            transfer(piece, &extent.file, extent.offset_bytes + inside)?;
            offset += bytes;
        }
        if buffers.bytes() == 0 {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        }
    }
}

impl BlockBackend for ExtentDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffers: Buffers) -> io::Result<()> {
        self.for_each(offset, buffers, |piece, file, at| piece.read_from(file, at))
    }

    fn write(&self, offset: u64, buffers: Buffers) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        self.for_each(offset, buffers, |piece, file, at| piece.write_to(file, at))
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let mut last: Option<&Arc<File>> = None;
        for Placed { extent, .. } in &self.extents {
            // Neighbours often share a file; syncing it twice costs time only.
            if last.is_none_or(|file| !Arc::ptr_eq(file, &extent.file)) {
                extent.file.sync_data()?;
            }
            last = Some(&extent.file);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{self, GuestMemory};

    fn file(content: &[u8]) -> Arc<File> {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    fn buffers(memory: &GuestMemory, length: usize) -> Buffers<'_> {
        let mut buffers = Buffers::default();
        buffers.push(memory, GuestAddress(0), length).unwrap();
        buffers
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
                    Extent { file: file.clone(), offset_bytes: *offset, length_bytes: *length }
                })
                .collect();
            let disk = ExtentDisk::new(extents, true).unwrap();
            prop_assert_eq!(disk.size_bytes(), whole.len() as u64);
            let start = (whole.len() as f64 * start) as usize;
            let length = ((whole.len() - start) as f64 * length) as usize;
            let memory = memory::create(1 << 16).unwrap();
            disk.read(start as u64, buffers(&memory, length)).unwrap();
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
        };
        let disk = ExtentDisk::new(vec![extent(&a, 50), extent(&b, 0)], false).unwrap();
        let memory = memory::create(1 << 16).unwrap();
        memory.write_slice(&[7; 20], GuestAddress(0)).unwrap();
        disk.write(40, buffers(&memory, 20)).unwrap();
        disk.flush().unwrap();
        let mut tail = [0; 10];
        a.read_exact_at(&mut tail, 90).unwrap();
        assert_eq!(tail, [7; 10]);
        b.read_exact_at(&mut tail, 0).unwrap();
        assert_eq!(tail, [7; 10]);
        b.read_exact_at(&mut tail, 10).unwrap();
        assert_eq!(tail, [0; 10]);
    }

    #[test]
    fn a_read_only_disk_refuses_writes() {
        let extent = Extent {
            file: file(&[0; 512]),
            offset_bytes: 0,
            length_bytes: 512,
        };
        let disk = ExtentDisk::new(vec![extent], true).unwrap();
        let memory = memory::create(1 << 16).unwrap();
        assert!(disk.write(0, buffers(&memory, 512)).is_err());
    }
}
