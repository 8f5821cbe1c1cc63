//! A tar stream, put together again.

use std::io::{self, Read};

use super::encoding::Places;
use super::input::Input;
use super::{MAGIC, SkeletonError};
use crate::image::ReadAt;

/// Reads the tar stream that a skeleton and its blob make.
///
/// Nothing is trusted: whatever the two hold, a read gives an error or bytes, of
/// which there are no more than the two have together, and memory is bounded.
/// Content goes from the blob straight to the buffer read into.
///
/// The end of the stream is told only when all is well: length, checksum, and
/// the end of the skeleton where it should be. What was read before an error is
/// to be discarded. An error is an [`io::Error`] with a [`SkeletonError`] in it,
/// and after one there are only errors.
pub struct Assembler<S, B> {
    skeleton: Input<S>,
    blob: B,
    blob_bytes: u64,
    places: Places,
    /// Bytes of the segments so far.
    assembled: u64,
    state: State,
}

/// What comes next. No segment is without bytes.
enum State {
    Between,
    Literal { left: u64 },
    Content { offset: u64, left: u64 },
    Ended,
    Failed,
}

impl<S: Read, B: ReadAt> Assembler<S, B> {
    /// Begins to read a skeleton, for a blob of `blob_bytes`.
    pub fn new(skeleton: S, blob: B, blob_bytes: u64) -> Result<Self, SkeletonError> {
        let mut skeleton = Input::new(skeleton);
        let [name @ .., version]: [u8; MAGIC.len()] = skeleton.array()?;
        let [known_name @ .., supported] = MAGIC;
        if name != known_name {
            return Err(SkeletonError::Magic);
        }
        if version != supported {
            let found = version;
            return Err(SkeletonError::Version { found, supported });
        }
        Ok(Self {
            skeleton,
            blob,
            blob_bytes,
            places: Places::new(blob_bytes),
            assembled: 0,
            state: State::Between,
        })
    }

    fn next_segment(&mut self) -> Result<State, SkeletonError> {
        let head = self.skeleton.number()?;
        let length = head / 2;
        if head == 0 {
            return self.end().map(|()| State::Ended);
        }
        if head.is_multiple_of(2) {
            // Grows by what was there to be read.
            return Ok(State::Literal { left: length });
        }
        if length == 0 {
            return Err(SkeletonError::EmptyContent {
                offset: self.skeleton.position(),
            });
        }
        let code = self.skeleton.number()?;
        let offset = self.places.decode(code, length);
        let offset = offset.map_err(|problem| SkeletonError::Place {
            length,
            blob_bytes: self.blob_bytes,
            problem,
        })?;
        Ok(State::Content {
            offset,
            left: length,
        })
    }

    fn end(&mut self) -> Result<(), SkeletonError> {
        let announced = self.skeleton.number()?;
        let expected = self.skeleton.checksum();
        let checksum = self.skeleton.array().map(u32::from_le_bytes)?;
        if checksum != expected {
            return Err(SkeletonError::Checksum);
        }
        if announced != self.assembled {
            return Err(SkeletonError::TarLength {
                announced,
                assembled: self.assembled,
            });
        }
        self.skeleton.finish()
    }

    /// Reads bytes into `into`, which has room for some; 0 at the end.
    fn read_some(&mut self, into: &mut [u8]) -> Result<usize, SkeletonError> {
        if let State::Between = self.state {
            self.state = self.next_segment()?;
        }
        let (count, left) = match &mut self.state {
            State::Literal { left } => {
                let count = self.skeleton.some(first(into, *left))?;
                (count, left)
            }
            State::Content { offset, left } => {
                let into = first(into, *left);
                let read = self.blob.read_exact_at(into, *offset);
                read.map_err(|source| SkeletonError::Blob {
                    offset: *offset,
                    length: into.len(),
                    source,
                })?;
                *offset += into.len() as u64;
                (into.len(), left)
            }
            State::Ended => return Ok(0),
            State::Between | State::Failed => return Err(SkeletonError::FailedBefore),
        };
        *left -= count as u64;
        if *left == 0 {
            self.state = State::Between;
        }
        self.assembled += count as u64;
        Ok(count)
    }
}

/// The first `length` bytes of `buffer`, or all of it.
fn first(buffer: &mut [u8], length: u64) -> &mut [u8] {
    let count = usize::try_from(length).map_or(buffer.len(), |n| n.min(buffer.len()));
    &mut buffer[..count]
}

impl<S: Read, B: ReadAt> Read for Assembler<S, B> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        self.read_some(into).map_err(|error| {
            self.state = State::Failed;
            error.into()
        })
    }
}
