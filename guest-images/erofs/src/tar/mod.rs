//! A streaming reader of tar archives that trusts nothing in them.
//!
//! It reads ustar, GNU tar and PAX, which is what Docker, BuildKit, containerd,
//! umoci, bsdtar and GNU tar write. Where those that read disagree, Go's
//! `archive/tar` is followed: Docker and containerd are built on it, so that is
//! what a layer was tested with.
//!
//! Not read, because no layer has them: multi-volume archives, incremental
//! dumps, and `LIBARCHIVE.xattr.*` (bsdtar writes every attribute as
//! `SCHILY.xattr.*` too).

mod error;
mod header;
mod input;
mod number;
mod pax;
mod recorder;
mod sparse;

use std::io::Read;

pub use error::{Inside, PaxProblem, SparseProblem, TarError};
pub use recorder::{Recorder, Unrecorded};
pub use sparse::Segment;

use crate::{EntryName, Timestamp};
use header::{Header, RECORD};
use input::Input;
use pax::Pax;
use sparse::MapError;

/// The most bytes of extended headers and long names before one entry. Go's `archive/tar` accepts as
/// much in one header, so Docker refuses a layer with more; the largest honest one holds a few
/// extended attributes of at most 64 KiB each.
const MAX_EXTENDED_HEADER_BYTES: u64 = 1 << 20;

/// What a tar entry creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of this size. Its stored bytes follow by
    /// [`Reader::read_data`]: all of it, or only `segments` of a sparse file.
    File {
        /// The size of the file, holes included.
        size: u64,
        /// What is stored of a sparse file; the rest is zeros.
        segments: Option<Vec<Segment>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name of the file at this path of the archive.
    HardLink(Vec<u8>),
    /// A character device, major and minor number.
    CharDevice(u32, u32),
    /// A block device, major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry of a tar stream. Names are as the archive spells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is to be created.
    pub path: Vec<u8>,
    /// What is to be created.
    pub kind: EntryKind,
    /// Permission bits: `0o7777`.
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes: full names and values, in order, as given.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the entries of a tar stream one after the other.
pub struct Reader<R, K = Unrecorded> {
    input: Input<R, K>,
    global: Pax,
    /// The name of the current entry, for errors.
    current: EntryName,
    /// Stored bytes of the current entry not read yet.
    data_left: u64,
    /// Zeros between the current entry's data and the next header.
    padding: u64,
}

/// What extended headers say about the entry after them.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Bytes of all of them: there may be any number.
    bytes: u64,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: Read> Reader<R> {
    /// A reader that takes at most `max_bytes` from the stream.
    pub fn new(stream: R, max_bytes: u64) -> Self {
        Self::recorded(stream, max_bytes, Unrecorded)
    }
}

impl<R: Read, K: Recorder> Reader<R, K> {
    /// The same, and tells `recorder` what the stream consists of, if its user
    /// says by [`record_content`](Self::record_content) where content went.
    pub(crate) fn recorded(stream: R, max_bytes: u64, recorder: K) -> Self {
        Self {
            input: Input::new(stream, max_bytes, recorder),
            global: Pax::default(),
            current: EntryName::from(&b""[..]),
            data_left: 0,
            padding: 0,
        }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.input.position()
    }

    /// Passes over what is left of the current entry and reads the next one.
    ///
    /// `None` at the end of the archive: two blocks of zeros, after which the
    /// stream is read to its end and ignored as every tar does (the digest of a
    /// layer covers it), or the end of the stream where a header could begin or
    /// in the padding before it.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.finish_entry()?;
        let mut pending = Pending::default();
        loop {
            let offset = self.input.position();
            let mut block = [0; RECORD];
            if !self.read_header(&mut block)? {
                if !pending.is_empty() {
                    return Err(TarError::DanglingExtendedHeader { offset });
                }
                self.input.skip(u64::MAX)?;
                return Ok(None);
            }
            let header = Header::new(&block).ok_or(TarError::Checksum { offset })?;
            match header.type_flag() {
                b'x' | b'X' => {
                    let records = self.read_extended_header(&header, offset, &mut pending.bytes)?;
                    let pax = pending.pax.get_or_insert_with(|| self.global.clone());
                    pax.extend(&records)
                        .map_err(|problem| TarError::Pax { offset, problem })?;
                }
                b'g' => self.read_global_header(&header, offset)?,
                b'L' => {
                    let name = self.read_extended_header(&header, offset, &mut pending.bytes)?;
                    pending.long_name = Some(header::until_nul(&name).to_vec());
                }
                b'K' => {
                    let name = self.read_extended_header(&header, offset, &mut pending.bytes)?;
                    pending.long_link = Some(header::until_nul(&name).to_vec());
                }
                _ => return self.read_entry(&header, offset, pending).map(Some),
            }
        }
    }

    /// Reads stored bytes of the current entry: 0 at their end. All bytes of a
    /// file, or of a sparse file those of its segments one after the other.
    pub fn read_data(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        let wanted = usize::try_from(self.data_left).map_or(into.len(), |n| n.min(into.len()));
        let count = self.input.read(&mut into[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(self.truncated(Inside::Content(self.current.clone())));
        }
        self.data_left -= count as u64;
        Ok(count)
    }

    /// Tells the recorder that the last `length` bytes from
    /// [`read_data`](Self::read_data) are at `blob_offset` of the blob.
    pub(crate) fn record_content(&mut self, blob_offset: u64, length: u64) -> Result<(), TarError> {
        self.input.record_content(blob_offset, length)
    }

    fn finish_entry(&mut self) -> Result<(), TarError> {
        let left = std::mem::take(&mut self.data_left);
        if self.input.skip(left)? < left {
            return Err(self.truncated(Inside::Content(self.current.clone())));
        }
        // A stream that ends within the padding has lost nothing: `umoci insert`
        // writes such layers, and Go's reader takes them.
        self.input.skip(std::mem::take(&mut self.padding))?;
        Ok(())
    }

    /// Reads one header block; `false` at the end of the archive.
    fn read_header(&mut self, block: &mut [u8; RECORD]) -> Result<bool, TarError> {
        if !self.read_block(block)? {
            return Ok(false);
        }
        if block != &[0; RECORD] {
            return Ok(true);
        }
        // A stream that ends after the first of the two blocks has lost
        // nothing, and some writers leave out the second.
        let offset = self.input.position();
        if self.read_block(block)? && block != &[0; RECORD] {
            return Err(TarError::LoneZeroBlock { offset });
        }
        Ok(false)
    }

    /// Reads a block; `false` if the stream ends where it would begin.
    fn read_block(&mut self, block: &mut [u8; RECORD]) -> Result<bool, TarError> {
        match self.input.read_full(block)? {
            RECORD => Ok(true),
            0 => Ok(false),
            _ => Err(self.truncated(Inside::Header)),
        }
    }

    /// Reads an extended header's content and adds its length to `total`, that
    /// of all that describe the same entry.
    fn read_extended_header(
        &mut self,
        header: &Header<'_>,
        offset: u64,
        total: &mut u64,
    ) -> Result<Vec<u8>, TarError> {
        let size = unsigned(header.size(), "size", offset)?;
        *total = total.saturating_add(size);
        if *total > MAX_EXTENDED_HEADER_BYTES {
            return Err(TarError::ExtendedHeaderTooLong {
                offset,
                announced: *total,
                limit: MAX_EXTENDED_HEADER_BYTES,
            });
        }
        let mut content = vec![0; size as usize];
        let padding = padding_after(size);
        if self.input.read_full(&mut content)? < content.len()
            || self.input.skip(padding)? < padding
        {
            return Err(self.truncated(Inside::ExtendedHeader));
        }
        Ok(content)
    }

    fn read_global_header(&mut self, header: &Header<'_>, offset: u64) -> Result<(), TarError> {
        let records = self.read_extended_header(header, offset, &mut 0)?;
        self.global
            .extend(&records)
            .and_then(|()| match self.global.only_for_one_file() {
                Some(key) => Err(PaxProblem::Global(key)),
                None => Ok(()),
            })
            .map_err(|problem| TarError::Pax { offset, problem })
    }

    fn read_entry(
        &mut self,
        header: &Header<'_>,
        offset: u64,
        pending: Pending,
    ) -> Result<Entry, TarError> {
        let mut pax = pending.pax.unwrap_or_else(|| self.global.clone());
        let path = (pax.sparse.name.take())
            .or(pax.path.take())
            .or(pending.long_name)
            .unwrap_or_else(|| header.name());
        self.current = EntryName::from(path.as_slice());
        let link = (pax.link_path.take())
            .or(pending.long_link)
            .unwrap_or_else(|| header.link_name().to_vec());

        let stored = match pax.size {
            Some(size) => size,
            None => unsigned(header.size(), "size", offset)?,
        };
        let kind = match header.type_flag() {
            b'0' | 0 | b'7' if path.ends_with(b"/") => {
                self.frame(stored);
                EntryKind::Directory
            }
            b'0' | 0 | b'7' => self.read_file(&pax, stored)?,
            b'S' => self.read_gnu_sparse(header, offset, stored)?,
            // These have no data, whatever size they claim: some tars put the
            // size of the link's target there.
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => {
                let (major, minor) = device(header, offset)?;
                EntryKind::CharDevice(major, minor)
            }
            b'4' => {
                let (major, minor) = device(header, offset)?;
                EntryKind::BlockDevice(major, minor)
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            flag => {
                return Err(TarError::Unsupported {
                    entry: self.current.clone(),
                    flag: char::from(flag),
                });
            }
        };

        let mode = header.mode().ok_or(TarError::Number {
            offset,
            field: "mode",
        })?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Timestamp {
                seconds: header.mtime().ok_or(TarError::Number {
                    offset,
                    field: "mtime",
                })?,
                nanoseconds: 0,
            },
        };
        Ok(Entry {
            path,
            kind,
            // The type bits that some tars leave in are in the type flag too.
            permissions: (mode & 0o7777) as u16,
            uid: id(pax.uid, header.uid(), "uid", offset)?,
            gid: id(pax.gid, header.gid(), "gid", offset)?,
            mtime,
            xattrs: pax.xattrs,
        })
    }

    /// A regular file, or one of the PAX forms of a sparse file.
    fn read_file(&mut self, pax: &Pax, stored: u64) -> Result<EntryKind, TarError> {
        let sparse = &pax.sparse;
        let map = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => {
                let (raw, taken) =
                    sparse::read_pax_1_0(&mut self.input, stored).map_err(|e| self.map_error(e))?;
                // The size in the header covers the map as well.
                self.frame(stored - taken);
                Some(raw)
            }
            // The older forms need not give a version.
            (None | Some(0), None | Some(0 | 1)) => {
                self.frame(stored);
                let pairs = sparse.map.as_deref().map(sparse::pairs).transpose();
                pairs.map_err(|problem| self.map_error(problem.into()))?
            }
            _ => return Err(self.map_error(SparseProblem::Malformed.into())),
        };
        let Some(raw) = map else {
            return Ok(EntryKind::File {
                size: stored,
                segments: None,
            });
        };
        let size = sparse
            .real_size
            .ok_or_else(|| self.map_error(SparseProblem::Malformed.into()))?;
        self.sparse_file(raw, size)
    }

    fn read_gnu_sparse(
        &mut self,
        header: &Header<'_>,
        offset: u64,
        stored: u64,
    ) -> Result<EntryKind, TarError> {
        let size = unsigned(header.sparse_real_size(), "real size", offset)?;
        let raw = sparse::read_gnu(&mut self.input, header).map_err(|e| self.map_error(e))?;
        self.frame(stored);
        self.sparse_file(raw, size)
    }

    fn sparse_file(&self, raw: Vec<(u64, u64)>, size: u64) -> Result<EntryKind, TarError> {
        let segments = if i64::try_from(size).is_ok() {
            sparse::validate(raw, size, self.data_left)
        } else {
            Err(SparseProblem::Malformed)
        };
        let segments = segments.map_err(|problem| self.map_error(problem.into()))?;
        Ok(EntryKind::File {
            size,
            segments: Some(segments),
        })
    }

    /// Announces the bytes between here and the next header.
    fn frame(&mut self, stored: u64) {
        self.data_left = stored;
        self.padding = padding_after(stored);
    }

    fn map_error(&self, error: MapError) -> TarError {
        match error {
            MapError::Tar(error) => error,
            MapError::Map(problem) => TarError::Sparse {
                entry: self.current.clone(),
                problem,
            },
        }
    }

    fn truncated(&self, inside: Inside) -> TarError {
        TarError::Truncated {
            offset: self.input.position(),
            inside,
        }
    }
}

fn padding_after(size: u64) -> u64 {
    (RECORD as u64 - size % RECORD as u64) % RECORD as u64
}

fn unsigned(number: Option<i64>, field: &'static str, offset: u64) -> Result<u64, TarError> {
    number
        .and_then(|number| u64::try_from(number).ok())
        .ok_or(TarError::Number { offset, field })
}

/// A user or group id. The last one, −1, is no id but "leave it" in chown(2).
fn id(
    pax: Option<u64>,
    header: Option<i64>,
    field: &'static str,
    offset: u64,
) -> Result<u32, TarError> {
    let number = match pax {
        Some(number) => number,
        None => unsigned(header, field, offset)?,
    };
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(TarError::Number { offset, field })
}

fn device(header: &Header<'_>, offset: u64) -> Result<(u32, u32), TarError> {
    let part = |number, field| {
        let number = unsigned(number, field, offset)?;
        u32::try_from(number).map_err(|_| TarError::Number { offset, field })
    };
    Ok((
        part(header.device_major(), "device major")?,
        part(header.device_minor(), "device minor")?,
    ))
}
