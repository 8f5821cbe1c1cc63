//! The 512-byte header block (POSIX.1-1988 ustar, GNU tar, and what both share
//! with the tar of Unix V7).

use super::number;

/// Headers and data come in blocks of this size.
pub(super) const RECORD: usize = 512;

/// One header block, its checksum already verified.
pub(super) struct Header<'a>(&'a [u8; RECORD]);

impl<'a> Header<'a> {
    /// `None` if the checksum does not match.
    pub(super) fn new(block: &'a [u8; RECORD]) -> Option<Self> {
        const FIELD: std::ops::Range<usize> = 148..156;
        let expected = number::parse(&block[FIELD])?;
        // The field itself counts as spaces.
        let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
        let spaces = u32::from(b' ') * FIELD.len() as u32;
        let unsigned = i64::from(sum(block) - sum(&block[FIELD]) + spaces);
        if expected == unsigned {
            return Some(Self(block));
        }
        // Some old tars summed signed bytes.
        let high = |bytes: &[u8]| bytes.iter().filter(|b| **b >= 0x80).count() as i64;
        let signed = unsigned - 256 * (high(block) - high(&block[FIELD]));
        (expected == signed).then_some(Self(block))
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number::parse(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number::parse(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number::parse(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        number::parse(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number::parse(&self.0[136..148])
    }

    pub(super) fn device_major(&self) -> Option<i64> {
        number::parse(&self.0[329..337])
    }

    pub(super) fn device_minor(&self) -> Option<i64> {
        number::parse(&self.0[337..345])
    }

    pub(super) fn link_name(&self) -> &'a [u8] {
        until_nul(&self.0[157..257])
    }

    /// The name, with the prefix that only POSIX headers have: GNU tar keeps
    /// other things there.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    /// The four segments of a GNU sparse header, and whether more follow in an
    /// extension block.
    pub(super) fn sparse_fields(&self) -> (&'a [u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    /// The size of a GNU sparse file with its holes.
    pub(super) fn sparse_real_size(&self) -> Option<i64> {
        number::parse(&self.0[483..495])
    }
}

/// An extension block of a GNU sparse header: 21 segments, and whether another
/// block follows.
pub(super) fn sparse_extension(block: &[u8; RECORD]) -> (&[u8], bool) {
    (&block[..504], block[504] != 0)
}

/// The bytes before the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}
