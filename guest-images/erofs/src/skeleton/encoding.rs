//! Numbers and places, as both sides understand them.

use super::PlaceProblem;
use crate::format::BLOCK_BYTES;

/// Bytes of the longest number.
pub(super) const MAX_NUMBER_BYTES: usize = 10;

/// Appends a number.
pub(super) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number apart from the bytes that `next` gives; `Ok(None)` if it is
/// longer than it needs to be, or than 64 bits.
pub(super) fn parse_number<E>(mut next: impl FnMut() -> Result<u8, E>) -> Result<Option<u64>, E> {
    let mut number = 0;
    for index in 0..MAX_NUMBER_BYTES {
        let byte = next()?;
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * index as u32;
        if bits << shift >> shift != bits {
            return Ok(None);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok((byte != 0 || index == 0).then_some(number));
        }
    }
    Ok(None)
}

/// Where in a blob content may be: not before what was there already.
pub(super) struct Places {
    /// Where the content so far ends.
    end: u64,
    limit: u64,
}

impl Places {
    /// Those in a blob of this length.
    pub(super) fn new(blob_bytes: u64) -> Self {
        Self {
            end: BLOCK_BYTES,
            // So that a place has a bit for its sign.
            limit: blob_bytes.min(i64::MAX as u64),
        }
    }

    /// Where the content so far ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Adds the content at `offset` and returns its place as it is written.
    pub(super) fn encode(&mut self, offset: u64, length: u64) -> Result<u64, PlaceProblem> {
        let boundary = self.boundary();
        self.add(offset, length)?;
        Ok(match offset.checked_sub(boundary) {
            Some(beyond) => 2 * beyond,
            None => 2 * (boundary - offset) - 1,
        })
    }

    /// Adds the content at the place `code` and returns its offset.
    pub(super) fn decode(&mut self, code: u64, length: u64) -> Result<u64, PlaceProblem> {
        let half = code / 2;
        let offset = if code.is_multiple_of(2) {
            // Of 63 bits each.
            self.boundary() + half
        } else {
            let before = self.boundary().checked_sub(half + 1);
            before.ok_or(PlaceProblem::Backwards)?
        };
        self.add(offset, length)?;
        Ok(offset)
    }

    fn boundary(&self) -> u64 {
        self.end.next_multiple_of(BLOCK_BYTES)
    }

    fn add(&mut self, offset: u64, length: u64) -> Result<(), PlaceProblem> {
        if offset < self.end {
            return Err(PlaceProblem::Backwards);
        }
        let end = offset.checked_add(length).filter(|end| *end <= self.limit);
        self.end = end.ok_or(PlaceProblem::PastEnd)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Option<u64> {
        let mut bytes = bytes.iter();
        let number = parse_number(|| bytes.next().copied().ok_or(())).ok()??;
        bytes.next().is_none().then_some(number)
    }

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(bits in 0..=64_u32, number: u64) {
            let number = number.checked_shr(64 - bits).unwrap_or(0);
            let mut bytes = Vec::new();
            push_number(&mut bytes, number);
            prop_assert!(bytes.len() <= MAX_NUMBER_BYTES);
            prop_assert_eq!(parse(&bytes), Some(number));
        }

        #[test]
        fn no_other_bytes_are_that_number(bytes in prop::collection::vec(any::<u8>(), 1..12)) {
            if let Some(number) = parse(&bytes) {
                let mut again = Vec::new();
                push_number(&mut again, number);
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn a_place_is_read_as_it_was_written(
            runs in prop::collection::vec((0..10_000_u64, 1..10_000_u64), 1..20),
        ) {
            let mut written = Places::new(u64::MAX);
            let mut read = Places::new(u64::MAX);
            for (gap, length) in runs {
                let offset = written.end() + gap;
                let code = written.encode(offset, length).unwrap();
                prop_assert_eq!(read.decode(code, length), Ok(offset));
            }
        }

        #[test]
        fn no_place_leads_out_of_the_blob(
            blob_bytes: u64,
            steps in prop::collection::vec((any::<u64>(), any::<u64>()), 1..20),
        ) {
            let mut places = Places::new(blob_bytes);
            let mut end = BLOCK_BYTES;
            for (code, length) in steps {
                if let Ok(offset) = places.decode(code, length) {
                    prop_assert!(offset >= end);
                    end = offset + length;
                    prop_assert!(end <= blob_bytes);
                }
            }
        }
    }

    #[test]
    fn the_largest_number_has_ten_bytes_and_no_larger_one_is_read() {
        let mut bytes = Vec::new();
        push_number(&mut bytes, u64::MAX);
        assert_eq!(bytes.len(), MAX_NUMBER_BYTES);
        bytes[9] = 2;
        assert_eq!(parse(&bytes), None);
        assert_eq!(parse(&[0x80; 11]), None);
        assert_eq!(parse(&[0x80, 0]), None);
    }

    #[test]
    fn a_file_that_follows_another_at_a_block_boundary_has_place_zero() {
        let mut places = Places::new(1 << 20);
        assert_eq!(places.encode(4096, 5000), Ok(0));
        assert_eq!(places.encode(12_288, 1), Ok(0));
        assert_eq!(places.encode(12_289, 1), Ok(2 * 4095 - 1));
    }

    #[test]
    fn the_first_block_and_what_was_used_are_no_places() {
        let mut places = Places::new(1 << 20);
        assert_eq!(places.encode(4095, 1), Err(PlaceProblem::Backwards));
        assert_eq!(places.encode(8192, 100), Ok(8192));
        assert_eq!(places.encode(8291, 1), Err(PlaceProblem::Backwards));
        assert_eq!(places.encode(1 << 20, 1), Err(PlaceProblem::PastEnd));
        assert_eq!(places.decode(u64::MAX, 1), Err(PlaceProblem::Backwards));
        assert_eq!(places.decode(u64::MAX - 1, 1), Err(PlaceProblem::PastEnd));
    }
}
