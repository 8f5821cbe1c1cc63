//! A range of a regular file: a blob in a layout, or an entry of an archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::layer::LayerContent;

use crate::open;

/// A range of a file. Reading it moves no shared file position.
#[derive(Debug, Clone)]
pub struct FileRegion {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl FileRegion {
    /// A whole file. Anything but a regular file is refused: a FIFO would
    /// block, and a directory has no bytes. Links are followed: layouts that
    /// share blobs have them.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open::at_once(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self {
            file: Arc::new(file),
            offset: 0,
            length: metadata.len(),
        })
    }

    /// A part of an open regular file.
    pub fn part(file: &Arc<File>, offset: u64, length: u64) -> Self {
        Self {
            file: Arc::clone(file),
            offset,
            length,
        }
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Everything in it, if that is not more than `limit` bytes.
    pub fn read_to_vec(&self, limit: u64) -> io::Result<Vec<u8>> {
        if self.length > limit {
            return Err(io::Error::other(format!(
                "it has {} bytes; at most {limit} are accepted",
                self.length
            )));
        }
        let mut bytes = Vec::new();
        let read = self.reader().read_to_end(&mut bytes)?;
        if read as u64 != self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// A reader over it.
    pub fn reader(&self) -> RegionReader {
        RegionReader {
            region: self.clone(),
            position: 0,
        }
    }
}

impl LayerContent for FileRegion {
    fn length(&self) -> u64 {
        self.length
    }

    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.reader()))
    }
}

/// Reads a [`FileRegion`] from its start.
#[derive(Debug)]
pub struct RegionReader {
    region: FileRegion,
    position: u64,
}

impl Read for RegionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.region.length - self.position;
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self
            .region
            .file
            .read_at(&mut buffer[..wanted], self.region.offset + self.position)?;
        if read == 0 {
            // The file shrank after its length was read.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_reads_its_own_bytes_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let part = FileRegion::part(&file, 3, 4);
        assert_eq!(part.read_to_vec(10).unwrap(), b"3456");
        assert!(part.read_to_vec(3).is_err());
        let beyond = FileRegion::part(&file, 8, 4);
        assert!(beyond.read_to_vec(10).is_err());
    }

    #[test]
    fn a_fifo_and_a_directory_are_refused_without_blocking() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        assert!(FileRegion::open(&fifo).is_err());
        assert!(FileRegion::open(directory.path()).is_err());
    }
}
