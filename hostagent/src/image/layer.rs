//! One layer at its source, and the only way to read it: verified.
//!
//! A layer is a tar stream, plain or compressed with gzip or zstd. What it is is
//! told by its first bytes: the media type of a layer is often wrong, and a
//! docker archive has none. Two digests guard it: that of the blob as it is
//! stored, and the `diff_id`, that of the tar stream. Of a plain layer they are
//! one, and it is hashed once.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::digest::Digest;
use super::hashing::HashingReader;
use super::progress::Task;

/// The bytes of a layer as its source stores them: part of a file, or of what a registry
/// sends.
pub trait LayerContent: fmt::Debug + Send + Sync {
    /// How many there are.
    fn length(&self) -> u64;

    /// Begins to read them. Nothing has been verified.
    fn open(&self) -> io::Result<Box<dyn Read + Send>>;

    /// What was opened last is not what it should be. If whoever gave it is not the only
    /// one who may have it, returns who that was: it is not read from there any more.
    fn reject(&self) -> Option<String> {
        None
    }
}

/// A layer that has not been read yet.
#[derive(Debug, Clone)]
pub struct LayerSource {
    /// The digest of the tar stream, from the image configuration.
    pub diff_id: Digest,
    /// The digest of the bytes of `content`, where the source gives one.
    pub blob: Option<Digest>,
    /// The bytes.
    pub content: Arc<dyn LayerContent>,
}

/// Why a layer was not taken in. `E` is the error of whoever consumed it.
#[derive(Debug, thiserror::Error)]
pub enum LayerError<E: std::error::Error + 'static> {
    /// The blob is not the one its manifest names.
    #[error("layer {expected} is corrupt: the sha256 of its {bytes} bytes is {found}")]
    BlobDigest {
        /// What the manifest says.
        expected: Digest,
        /// What the bytes are.
        found: Digest,
        /// How many bytes there are.
        bytes: u64,
    },
    /// The tar stream is not the one the configuration names.
    #[error(
        "the layer's content is not what the image configuration says: expected diff_id {expected}, found {found}"
    )]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What the tar stream is.
        found: Digest,
    },
    /// A compression this reader does not have.
    #[error("layer {diff_id} is compressed with {compression}; gzip, zstd and none are supported")]
    Compression {
        /// The layer.
        diff_id: Digest,
        /// The name of the compression.
        compression: &'static str,
    },
    /// The source could not be read, or its compressed data is damaged.
    #[error("layer {diff_id} could not be read")]
    Read {
        /// The layer.
        diff_id: Digest,
        /// What the source said.
        source: io::Error,
    },
    /// The content is as announced, but its consumer refused it.
    #[error("layer {diff_id} could not be converted")]
    Consumer {
        /// The layer.
        diff_id: Digest,
        /// Why.
        source: E,
    },
    /// [`Progress::cancelled`] became true.
    #[error("interrupted")]
    Cancelled,
}

impl<E: std::error::Error> LayerError<E> {
    /// Whether other bytes came than the manifest names, whatever they led to.
    pub(crate) fn is_other_blob(&self) -> bool {
        matches!(self, Self::BlobDigest { .. })
    }
}

/// The longest window of a zstd frame, which is held in memory: 64 MiB, as a power of two.
/// No level asks for more of those that need no flag of their own (`--ultra`, `--long`).
const MAX_WINDOW_LOG: u32 = 26;

/// Decompresses frames of zstd; one that asks for more memory than a layer may cost is an
/// error.
pub(crate) fn zstd_decoder<R: BufRead>(input: R) -> io::Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(input)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    Ok(decoder)
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Told by the first bytes; the name of one that is not supported as error.
    fn of(start: &[u8]) -> Result<Self, &'static str> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or a skippable frame before it (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err("bzip2"),
            _ => Ok(Self::None),
        }
    }
}

impl LayerSource {
    /// Gives the tar stream to `consume` and then checks every digest. What
    /// `consume` made must not be used unless this returns `Ok`. The source is read once.
    ///
    /// When `consume` fails on bytes that are not the announced ones, the error
    /// is the digest's, because that is the cause.
    pub fn read_verified<T, E: std::error::Error + 'static>(
        &self,
        task: &dyn Task,
        consume: impl FnOnce(&mut dyn BufRead) -> Result<T, E>,
    ) -> Result<T, LayerError<E>> {
        let outcome = self.read_checked(task, consume);
        match outcome {
            Err(_) if task.cancelled() => Err(LayerError::Cancelled),
            outcome => outcome,
        }
    }

    fn read_checked<T, E: std::error::Error + 'static>(
        &self,
        task: &dyn Task,
        consume: impl FnOnce(&mut dyn BufRead) -> Result<T, E>,
    ) -> Result<T, LayerError<E>> {
        let inner = self.content.open();
        let inner = inner.map_err(|source| self.unreadable(source))?;
        let mut blob = HashingReader::new(Watched { inner, task })
            .map_err(|source| self.unreadable(source))?;
        let start = blob.fill_buf().map_err(|source| self.unreadable(source))?;
        let compression = Compression::of(start);
        let outcome = match compression {
            Err(compression) => Err(LayerError::Compression {
                diff_id: self.diff_id,
                compression,
            }),
            Ok(Compression::None) => consume(&mut blob)
                .map(|made| (made, None))
                .map_err(|source| self.refused(source)),
            Ok(Compression::Gzip) => self.decompressed(MultiGzDecoder::new(&mut blob), consume),
            Ok(Compression::Zstd) => zstd_decoder(&mut blob)
                .map_err(|source| self.unreadable(source))
                .and_then(|decoder| self.decompressed(decoder, consume)),
        };
        // Also after a failure: other bytes than announced are what explains it.
        let found = match (blob.finish(), &outcome) {
            (Ok(digest), _) => digest,
            // What failed first is why.
            (Err(_), Err(_)) => return outcome.map(|(made, _)| made),
            (Err(source), Ok(_)) => return Err(self.unreadable(source)),
        };
        self.check_blob(found)?;
        if compression == Ok(Compression::None) {
            self.check_diff_id(found)?;
        }
        let (made, tar) = outcome?;
        self.check_diff_id(tar.unwrap_or(found))?;
        Ok(made)
    }

    /// Gives what `decoder` decompresses to `consume`; returns its digest too.
    fn decompressed<T, E: std::error::Error>(
        &self,
        decoder: impl Read,
        consume: impl FnOnce(&mut dyn BufRead) -> Result<T, E>,
    ) -> Result<(T, Option<Digest>), LayerError<E>> {
        let mut tar = HashingReader::new(decoder).map_err(|source| self.unreadable(source))?;
        let made = consume(&mut tar).map_err(|source| self.refused(source))?;
        let digest = tar.finish().map_err(|source| self.unreadable(source))?;
        Ok((made, Some(digest)))
    }

    fn check_blob<E: std::error::Error>(&self, found: Digest) -> Result<(), LayerError<E>> {
        match self.blob {
            Some(expected) if expected != found => Err(LayerError::BlobDigest {
                expected,
                found,
                bytes: self.content.length(),
            }),
            _ => Ok(()),
        }
    }

    fn check_diff_id<E: std::error::Error>(&self, found: Digest) -> Result<(), LayerError<E>> {
        if found == self.diff_id {
            return Ok(());
        }
        Err(LayerError::DiffId {
            expected: self.diff_id,
            found,
        })
    }

    fn unreadable<E: std::error::Error>(&self, source: io::Error) -> LayerError<E> {
        LayerError::Read {
            diff_id: self.diff_id,
            source,
        }
    }

    fn refused<E: std::error::Error>(&self, source: E) -> LayerError<E> {
        LayerError::Consumer {
            diff_id: self.diff_id,
            source,
        }
    }
}

/// Counts what is read, and fails once the user has had enough.
struct Watched<'t> {
    inner: Box<dyn Read + Send>,
    task: &'t dyn Task,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.task.cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        let read = self.inner.read(buffer)?;
        self.task.advance(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::region::FileRegion;
    use super::*;

    fn region(bytes: &[u8]) -> Arc<FileRegion> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let length = bytes.len() as u64;
        Arc::new(FileRegion::part(&Arc::new(file), 0, length))
    }

    fn source(tar: &[u8], blob: &[u8]) -> LayerSource {
        LayerSource {
            diff_id: Digest::of(tar),
            blob: Some(Digest::of(blob)),
            content: region(blob),
        }
    }

    fn content() -> Vec<u8> {
        (0..1_000_000u32).map(|i| (i / 100 % 251) as u8).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    fn read_all(source: &LayerSource) -> Result<Vec<u8>, LayerError<io::Error>> {
        source.read_verified(&(), |tar| {
            let mut bytes = Vec::new();
            tar.read_to_end(&mut bytes).map(|_| bytes)
        })
    }

    #[test]
    fn plain_gzip_and_zstd_layers_are_told_by_their_bytes() {
        let tar = content();
        for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
            assert!(read_all(&source(&tar, &blob)).unwrap() == tar);
        }
    }

    #[test]
    fn several_gzip_members_and_zstd_frames_are_one_stream() {
        let tar = content();
        let (first, second) = tar.split_at(123_456);
        for pack in [gzip, zstd] {
            let blob = [pack(first), pack(second)].concat();
            assert!(read_all(&source(&tar, &blob)).unwrap() == tar);
        }
    }

    #[test]
    fn a_consumer_that_stops_early_does_not_spare_the_check() {
        let tar = content();
        let mut wrong = source(&tar, &gzip(&tar));
        wrong.diff_id = Digest::of(b"another");
        let outcome = wrong.read_verified(&(), |_| Ok::<_, io::Error>(()));
        assert!(
            matches!(outcome, Err(LayerError::DiffId { found, .. }) if found == Digest::of(&tar))
        );
    }

    #[test]
    fn a_wrong_blob_digest_names_both_digests() {
        let tar = content();
        for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
            let mut wrong = source(&tar, &blob);
            wrong.blob = Some(Digest::of(b"another"));
            let message = read_all(&wrong).unwrap_err().to_string();
            assert!(
                message.contains(&Digest::of(b"another").to_string()),
                "{message}"
            );
            assert!(
                message.contains(&Digest::of(&blob).to_string()),
                "{message}"
            );
        }
    }

    #[test]
    fn damage_is_reported_as_a_wrong_digest_not_as_what_it_caused() {
        let tar = content();
        for whole in [gzip(&tar), zstd(&tar)] {
            let mut damaged = whole.clone();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 0x40;
            let mut source = source(&tar, &whole);
            source.content = region(&damaged);
            assert!(matches!(
                read_all(&source),
                Err(LayerError::BlobDigest { .. })
            ));
            source.content = region(&whole[..middle]);
            assert!(matches!(
                read_all(&source),
                Err(LayerError::BlobDigest { .. })
            ));
        }
    }

    #[test]
    fn a_truncated_layer_without_a_blob_digest_is_refused() {
        let tar = content();
        for whole in [tar.clone(), gzip(&tar), zstd(&tar)] {
            let mut source = source(&tar, &whole);
            source.blob = None;
            source.content = region(&whole[..whole.len() - 10]);
            assert!(read_all(&source).is_err());
        }
    }

    #[test]
    fn other_compressions_are_named() {
        for (start, name) in [(&b"\xfd7zXZ\0\0\0"[..], "xz"), (b"BZh91AY&", "bzip2")] {
            let message = read_all(&source(start, start)).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn an_error_of_the_consumer_on_good_content_is_its_own() {
        let tar = content();
        let outcome = source(&tar, &gzip(&tar))
            .read_verified(&(), |_| Err::<(), _>(io::Error::other("no space")));
        assert!(matches!(outcome, Err(LayerError::Consumer { .. })));
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        let tar = content();
        let source = LayerSource {
            content: Arc::new(FileRegion::part(
                &Arc::new(File::open("/dev/null").unwrap()),
                0,
                tar.len() as u64,
            )),
            ..source(&tar, &tar)
        };
        assert!(matches!(read_all(&source), Err(LayerError::Read { .. })));
    }

    #[test]
    fn cancelling_ends_the_read() {
        struct AfterTwo(AtomicU64);
        impl Task for AfterTwo {
            fn advance(&self, _: u64) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
            fn cancelled(&self) -> bool {
                self.0.load(Ordering::Relaxed) >= 2
            }
        }
        let tar = content();
        let outcome = source(&tar, &tar).read_verified(&AfterTwo(AtomicU64::new(0)), |tar| {
            io::copy(tar, &mut io::sink())
        });
        assert!(matches!(outcome, Err(LayerError::Cancelled)));
    }
}
