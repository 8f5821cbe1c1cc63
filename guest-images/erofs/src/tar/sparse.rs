//! Maps of sparse files: GNU tar's own and the three PAX forms.

use std::io::Read;

use super::header::{self, Header, RECORD, until_nul};
use super::input::Input;
use super::{Inside, Recorder, SparseProblem, TarError, number};

/// Segments a sparse file may have. A file system image of many gigabytes has
/// some ten thousand; a million take 16 MiB of memory while the file is read.
pub(super) const MAX_SEGMENTS: usize = 1 << 20;

/// Decimal digits in a number of a 1.0 map: those of `u64::MAX`.
const MAX_DIGITS: usize = 20;

/// A run of stored bytes in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it begins.
    pub offset: u64,
    /// How many bytes it has, at least 1.
    pub length: u64,
}

/// A map under construction that may still fail for one of two reasons.
pub(super) enum MapError {
    Tar(TarError),
    Map(SparseProblem),
}

impl From<TarError> for MapError {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<SparseProblem> for MapError {
    fn from(problem: SparseProblem) -> Self {
        Self::Map(problem)
    }
}

/// Checks that the segments are in order, lie within the file, and take exactly
/// the bytes stored; joins adjacent ones and drops empty ones.
pub(super) fn validate(
    raw: impl IntoIterator<Item = (u64, u64)>,
    real_size: u64,
    stored: u64,
) -> Result<Vec<Segment>, SparseProblem> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut end = 0;
    let mut sum = 0;
    for (offset, length) in raw {
        if offset < end {
            return Err(SparseProblem::Order);
        }
        let next = offset.checked_add(length).filter(|e| *e <= real_size);
        let next = next.ok_or(SparseProblem::Order)?;
        // Disjoint parts of one file: the sum cannot exceed its size.
        sum += length;
        match segments.last_mut() {
            _ if length == 0 => {}
            Some(last) if offset == end => last.length += length,
            _ => segments.push(Segment { offset, length }),
        }
        end = next;
    }
    if sum == stored {
        Ok(segments)
    } else {
        Err(SparseProblem::Sum)
    }
}

/// Turns the alternating numbers of a PAX map into pairs.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, SparseProblem> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SparseProblem::Malformed);
    }
    if pairs.len() > MAX_SEGMENTS {
        return Err(SparseProblem::TooMany(MAX_SEGMENTS));
    }
    Ok(pairs
        .iter()
        .map(|[offset, length]| (*offset, *length))
        .collect())
}

/// Reads the map of a GNU sparse header and the extension blocks after it.
pub(super) fn read_gnu<R: Read, K: Recorder>(
    input: &mut Input<R, K>,
    header: &Header<'_>,
) -> Result<Vec<(u64, u64)>, MapError> {
    let mut raw = Vec::new();
    let (fields, mut more) = header.sparse_fields();
    push_gnu_fields(&mut raw, fields)?;
    while more {
        let mut block = [0; RECORD];
        read_map_block(input, &mut block)?;
        let (fields, again) = header::sparse_extension(&block);
        push_gnu_fields(&mut raw, fields)?;
        more = again;
        if raw.len() > MAX_SEGMENTS {
            return Err(SparseProblem::TooMany(MAX_SEGMENTS).into());
        }
    }
    Ok(raw)
}

fn push_gnu_fields(raw: &mut Vec<(u64, u64)>, fields: &[u8]) -> Result<(), SparseProblem> {
    for field in fields.chunks_exact(24) {
        let (offset, length) = field.split_at(12);
        // An empty field ends the list within its block.
        if until_nul(length).is_empty() {
            return Ok(());
        }
        let parse = |field| {
            let number = number::parse(field).ok_or(SparseProblem::Malformed)?;
            u64::try_from(number).map_err(|_| SparseProblem::Malformed)
        };
        raw.push((parse(offset)?, parse(length)?));
    }
    Ok(())
}

/// Reads the map that precedes the data in the 1.0 form: decimal numbers, one a
/// line, first how many segments follow; padded to a whole block. Returns it
/// with the bytes it took.
pub(super) fn read_pax_1_0<R: Read, K: Recorder>(
    input: &mut Input<R, K>,
    stored: u64,
) -> Result<(Vec<(u64, u64)>, u64), MapError> {
    let mut lines = MapLines {
        input,
        block: [0; RECORD],
        next: RECORD,
        taken: 0,
        stored,
    };
    let count = lines.next_number()?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_SEGMENTS)
        .ok_or(SparseProblem::TooMany(MAX_SEGMENTS))?;
    // Grown by what arrives, not by what was announced.
    let mut raw = Vec::new();
    for _ in 0..count {
        raw.push((lines.next_number()?, lines.next_number()?));
    }
    Ok((raw, lines.taken))
}

struct MapLines<'a, R, K> {
    input: &'a mut Input<R, K>,
    block: [u8; RECORD],
    next: usize,
    taken: u64,
    stored: u64,
}

impl<R: Read, K: Recorder> MapLines<'_, R, K> {
    fn next_number(&mut self) -> Result<u64, MapError> {
        let mut digits = [0; MAX_DIGITS];
        let mut length = 0;
        loop {
            match self.next_byte()? {
                b'\n' => break,
                digit => {
                    *digits.get_mut(length).ok_or(SparseProblem::Malformed)? = digit;
                    length += 1;
                }
            }
        }
        Ok(number::parse_decimal(&digits[..length]).ok_or(SparseProblem::Malformed)?)
    }

    fn next_byte(&mut self) -> Result<u8, MapError> {
        if self.next == RECORD {
            if self.stored - self.taken < RECORD as u64 {
                return Err(SparseProblem::Malformed.into());
            }
            read_map_block(self.input, &mut self.block)?;
            self.taken += RECORD as u64;
            self.next = 0;
        }
        self.next += 1;
        Ok(self.block[self.next - 1])
    }
}

fn read_map_block<R: Read, K: Recorder>(
    input: &mut Input<R, K>,
    block: &mut [u8; RECORD],
) -> Result<(), TarError> {
    if input.read_full(block)? < RECORD {
        return Err(TarError::Truncated {
            offset: input.position(),
            inside: Inside::SparseMap,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_segments_become_one_and_empty_ones_vanish() {
        let raw = [(0, 10), (10, 5), (20, 0), (30, 1), (50, 0)];
        let segments = validate(raw, 50, 16).unwrap();
        let expected = [(0, 15), (30, 1)].map(|(offset, length)| Segment { offset, length });
        assert_eq!(segments, expected);
    }

    #[test]
    fn segments_that_could_not_be_a_files_are_refused() {
        let check = |raw: &[(u64, u64)], size, stored| {
            validate(raw.iter().copied(), size, stored).unwrap_err()
        };
        assert_eq!(check(&[(0, 5), (4, 1)], 10, 6), SparseProblem::Order);
        assert_eq!(check(&[(5, 5), (0, 1)], 10, 6), SparseProblem::Order);
        assert_eq!(check(&[(6, 5)], 10, 5), SparseProblem::Order);
        assert_eq!(check(&[(u64::MAX, 2)], 10, 2), SparseProblem::Order);
        assert_eq!(check(&[(0, 5)], 10, 6), SparseProblem::Sum);
    }

    #[test]
    fn a_map_of_an_odd_number_of_numbers_is_refused() {
        assert_eq!(pairs(&[1, 2, 3]), Err(SparseProblem::Malformed));
    }
}
