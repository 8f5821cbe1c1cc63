//! Kernel and initrd, as blobs: each group is verified before anything of it is believed
//! or copied to the guest.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, SeekFrom};

use outboard::{GROUP_BYTES, Geometry, SPAN_BYTES, Span, Tree, TreeError};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::block::verified::Corrupt;

/// Reads a blob. A group is in memory at a time, and the nodes over a span.
#[derive(Debug)]
pub struct BootBlob {
    tree: Tree,
    data: File,
    outboard: File,
    position: u64,
    span: Option<(u64, Span)>,
    /// The group at hand, and which one it is.
    group: Vec<u8>,
    number: Option<u64>,
    corrupt: Option<Corrupt>,
}

impl BootBlob {
    /// `data`, which is what `tree` says, as `outboard` shows.
    pub fn new(tree: Tree, data: File, outboard: File) -> Self {
        Self {
            tree,
            data,
            outboard,
            position: 0,
            span: None,
            group: Vec::new(),
            number: None,
            corrupt: None,
        }
    }

    /// Its length in bytes.
    pub fn length_bytes(&self) -> u64 {
        self.geometry().blob_bytes()
    }

    /// What was wrong with it when a read failed, for callers of who keeps the reason to
    /// themselves.
    pub fn take_corruption(&mut self) -> Option<Corrupt> {
        self.corrupt.take()
    }

    fn geometry(&self) -> Geometry {
        self.tree.geometry()
    }

    /// What is left of the group that the position is in, verified; nothing at the end.
    fn at_hand(&mut self) -> io::Result<&[u8]> {
        if self.position >= self.length_bytes() {
            return Ok(&[]);
        }
        let number = self.position / GROUP_BYTES;
        if self.number != Some(number) {
            self.number = None;
            self.load(number)?;
            self.number = Some(number);
        }
        let from = (self.position % GROUP_BYTES) as usize;
        Ok(self.group.get(from..).unwrap_or_default())
    }

    fn load(&mut self, number: u64) -> io::Result<()> {
        let index = number * GROUP_BYTES / SPAN_BYTES;
        let span = match self.span.take() {
            Some((known, span)) if known == index => span,
            _ => self.read_span(index)?,
        };
        self.group
            .resize(self.geometry().group_bytes(number) as usize, 0);
        let offset = number * GROUP_BYTES;
        read_exact_at(&self.data, &mut self.group, offset)
            .map_err(|error| self.unreadable(error, index, offset))?;
        if !span.verify(number, &self.group) {
            return Err(self.corrupt(index, offset, "its data is wrong"));
        }
        self.span = Some((index, span));
        Ok(())
    }

    fn read_span(&mut self, index: u64) -> io::Result<Span> {
        let read = |buffer: &mut [u8], offset| read_exact_at(&self.outboard, buffer, offset);
        match self.tree.span(index, read) {
            Ok(span) => Ok(span),
            Err(TreeError::Corrupt { offset, .. }) => {
                Err(self.corrupt(index, offset, "its hash tree is wrong"))
            }
            Err(TreeError::Read { offset, source, .. }) => {
                Err(self.unreadable(source, index, offset))
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// A file that ends before the blob does is another one.
    fn unreadable(&mut self, error: io::Error, span: u64, offset: u64) -> io::Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt(span, offset, "it ends"),
            _ => error,
        }
    }

    fn corrupt(&mut self, span: u64, offset: u64, what: &'static str) -> io::Error {
        let corrupt = Corrupt {
            hash: self.tree.hash(),
            span,
            offset,
            what,
            first: true,
        };
        self.corrupt = Some(corrupt.clone());
        io::Error::new(io::ErrorKind::InvalidData, corrupt)
    }
}

impl Read for BootBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.at_hand()?.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl ReadVolatile for BootBlob {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        // All that there is: guest memory takes less for an error.
        let mut count = 0;
        while count < buffer.len() {
            let mut left = self.at_hand().map_err(VolatileMemoryError::IOError)?;
            let read = left.read_volatile(&mut buffer.offset(count)?)?;
            if read == 0 {
                break;
            }
            count += read;
            self.position += read as u64;
        }
        Ok(count)
    }
}

impl Seek for BootBlob {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.length_bytes().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// By preadv2(2), as disks are read: the filter has no other call that reads at an offset.
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let whole = &mut [IoSliceMut::new(buffer)];
        match preadv2(file, whole, offset, ReadWriteFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use outboard::Builder;
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    /// A blob with these bytes, and its files.
    fn blob(content: &[u8]) -> (BootBlob, File, File) {
        let file = || File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        let (data, outboard) = (file(), file());
        data.write_all_at(content, 0).unwrap();
        let builder = Builder::new(outboard.try_clone().unwrap());
        let built = builder.build(content).unwrap();
        let tree = Tree::new(built.hash, built.blob_bytes);
        let files = (data.try_clone().unwrap(), outboard.try_clone().unwrap());
        (BootBlob::new(tree, data, outboard), files.0, files.1)
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at / 7 + at / 4099) as u8).collect()
    }

    #[test]
    fn a_blob_is_read_as_it_is_from_anywhere() {
        for bytes in [0, 1, 16 << 10, (16 << 10) + 1, (2 << 20) + 5] {
            let content = content(bytes);
            let (mut blob, ..) = blob(&content);
            let mut read = Vec::new();
            blob.read_to_end(&mut read).unwrap();
            assert_eq!(read, content, "{bytes}");
            let middle = bytes as u64 / 2;
            assert_eq!(blob.seek(SeekFrom::Start(middle)).unwrap(), middle);
            read.clear();
            blob.read_to_end(&mut read).unwrap();
            assert_eq!(read, content[middle as usize..], "{bytes}");
            assert_eq!(blob.seek(SeekFrom::End(0)).unwrap(), bytes as u64);
        }
    }

    #[test]
    fn a_blob_whose_files_end_early_is_corrupt() {
        for which in 0..2 {
            let (mut blob, data, outboard) = blob(&content(3 << 20));
            let (file, bytes) = [(&data, 3 << 20), (&outboard, 191 * 64)][which];
            file.set_len(bytes - 1).unwrap();
            let error = io::copy(&mut blob, &mut io::sink()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(blob.take_corruption().unwrap().what, "it ends");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_that_a_changed_bit_is_in_is_read(
            bytes in 1_usize..3_000_000,
            place in any::<prop::sample::Index>(),
            bit in 0..8_u8,
            in_tree in any::<bool>(),
        ) {
            let content = content(bytes);
            let (mut blob, data, outboard) = blob(&content);
            let (file, length) = match outboard.metadata().unwrap().len() {
                nodes if in_tree && nodes > 0 => (&outboard, nodes),
                _ => (&data, bytes as u64),
            };
            let at = place.index(length as usize) as u64;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            let mut read = Vec::new();
            let error = blob.read_to_end(&mut read).unwrap_err();
            prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            prop_assert!(content.starts_with(&read));
            prop_assert_eq!(blob.take_corruption().unwrap().hash, blob.tree.hash());
        }
    }
}
