//! Who is told what a tar stream consists of.

use std::io;

/// Hears, in the order of the stream, all of a tar stream once: the bytes that
/// are no stored file content, and where the content went instead.
///
/// What belongs together may come in pieces of any size, empty ones too. An
/// error ends the reading of the stream; nothing is told after it.
pub trait Recorder {
    /// Bytes that are kept nowhere else: headers, their extensions, maps of
    /// sparse files, padding, the end of the archive and what follows it.
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The next `length` bytes of the stream are file content, and are the
    /// bytes at `blob_offset` of the blob. Offsets ascend: what was told of
    /// earlier ends there or before.
    fn content(&mut self, blob_offset: u64, length: u64) -> io::Result<()>;
}

impl<K: Recorder + ?Sized> Recorder for &mut K {
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        (**self).literal(bytes)
    }

    fn content(&mut self, blob_offset: u64, length: u64) -> io::Result<()> {
        (**self).content(blob_offset, length)
    }
}

/// Records nothing, at no cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unrecorded;

impl Recorder for Unrecorded {
    fn literal(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn content(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
