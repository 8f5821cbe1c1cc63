//! Archives that cannot be read at any position: pipes, and archives that are
//! compressed as a whole.
//!
//! Which layers an archive has is known only once its end has been seen, so
//! such an archive is written to a file first. The file has no name: it is gone
//! when its descriptor is closed, in whatever way.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::import::ImportError;
use super::{Store, StoreError};
use crate::image::layer::zstd_decoder;
use crate::image::progress::{Progress, Task};

/// Bytes copied at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// How long to wait for input before looking whether the user wants to stop.
const POLL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

impl Store {
    /// Copies `input` to a nameless file of the store, decompressed, if it is no longer than
    /// a layer may be.
    pub fn spool(&self, input: File, progress: &dyn Progress) -> Result<File, ImportError> {
        let staging = self.scratch()?;
        let failed = |error| self.io("copying the archive", error);
        let mut spooled = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(staging.path().join("archive"))
            .map_err(failed)?;
        drop(staging);

        let task = progress.begin("copying the archive", 0);
        let task = &*task;
        let input = Watched { input, task };
        let limit = self.limits.max_tar_bytes;
        let copied = decompressed(input).and_then(|mut input| {
            let mut buffer = vec![0; BUFFER_BYTES];
            let mut bytes = 0_u64;
            loop {
                match input.read(&mut buffer) {
                    Ok(0) => return Ok(Ok(())),
                    Ok(read) => {
                        bytes += read as u64;
                        if bytes > limit {
                            return Ok(Err(StoreError::ArchiveTooLarge { limit }));
                        }
                        if let Err(error) = spooled.write_all(&buffer[..read]) {
                            return Ok(Err(failed(error)));
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        });
        if progress.cancelled() {
            return Err(ImportError::Cancelled);
        }
        match copied {
            Ok(Ok(())) => Ok(spooled),
            Ok(Err(error)) => {
                drop(spooled);
                Err(error.into())
            }
            Err(source) => Err(StoreError::Input { source }.into()),
        }
    }
}

/// Whether an archive must be spooled because it is compressed.
pub fn is_compressed(start: &[u8]) -> bool {
    matches!(start, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..])
}

fn decompressed<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let mut start = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut start)?;
    let gzip = start.starts_with(&[0x1f, 0x8b]);
    let compressed = is_compressed(&start);
    let input = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(start).chain(input));
    Ok(match (compressed, gzip) {
        (true, true) => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        (true, false) => Box::new(zstd_decoder(input)?),
        (false, _) => Box::new(input),
    })
}

/// Input that may block for long, and the user's wish to stop.
struct Watched<'p> {
    input: File,
    task: &'p dyn Task,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.task.cancelled() {
                return Err(io::Error::other("interrupted"));
            }
            let mut waited = [PollFd::from_borrowed_fd(self.input.as_fd(), PollFlags::IN)];
            match poll(&mut waited, Some(&POLL)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            match self.input.read(buffer) {
                // Somebody else has read what there was.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(read) => {
                    self.task.advance(read as u64);
                    return Ok(read);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn spooled(bytes: &[u8]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (read, mut write) = io::pipe().unwrap();
        let bytes = bytes.to_owned();
        let writer = std::thread::spawn(move || write.write_all(&bytes));
        let input = File::from(std::os::fd::OwnedFd::from(read));
        let mut file = store.spool(input, &()).unwrap();
        writer.join().unwrap().unwrap();
        assert_eq!(std::fs::read_dir(store.staging()).unwrap().count(), 0);
        let mut seen = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut seen).unwrap();
        seen
    }

    #[test]
    fn a_pipe_is_copied_and_a_compressed_one_decompressed() {
        let content: Vec<u8> = (0..1_000_000u32).map(|i| (i / 64) as u8).collect();
        assert!(spooled(&content) == content);
        assert!(spooled(&zstd::encode_all(&content[..], 1).unwrap()) == content);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&content).unwrap();
        assert!(spooled(&gzip.finish().unwrap()) == content);
        assert!(spooled(b"").is_empty());
        assert!(spooled(b"ab") == b"ab");
    }

    #[test]
    fn what_decompresses_without_end_is_an_error_that_says_what_raises_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let limits = erofs::Limits {
            max_tar_bytes: 1 << 20,
            ..erofs::Limits::default()
        };
        let store = store.with_limits(limits);
        let zeroes = vec![0; (1 << 20) + 1];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeroes).unwrap();
        for bomb in [
            gzip.finish().unwrap(),
            zstd::encode_all(&zeroes[..], 1).unwrap(),
        ] {
            let mut input = tempfile::tempfile().unwrap();
            input.write_all(&bomb).unwrap();
            input.rewind().unwrap();
            let error = store.spool(input, &()).unwrap_err().to_string();
            assert!(error.contains("max_layer_bytes in limits.toml"), "{error}");
            assert_eq!(std::fs::read_dir(store.staging()).unwrap().count(), 0);
        }
    }

    #[test]
    fn an_input_that_never_ends_can_be_cancelled() {
        struct Cancelled;
        impl Task for Cancelled {
            fn cancelled(&self) -> bool {
                true
            }
        }
        impl Progress for Cancelled {
            fn begin(&self, _: &str, _: u64) -> Box<dyn Task + '_> {
                Box::new(Self)
            }
            fn cancelled(&self) -> bool {
                true
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (read, _write) = io::pipe().unwrap();
        let input = File::from(std::os::fd::OwnedFd::from(read));
        let outcome = store.spool(input, &Cancelled);
        assert!(matches!(outcome, Err(ImportError::Cancelled)));
    }
}
