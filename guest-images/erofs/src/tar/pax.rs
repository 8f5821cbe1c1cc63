//! The records of PAX extended headers (POSIX.1-2001, pax(1), "pax Interchange
//! Format").

use super::{PaxProblem, number};
use crate::Timestamp;

/// What the records of one extended header say, as far as it concerns a layer.
/// Keys without a meaning here (`atime`, `uname`, `comment`, …) are dropped.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Timestamp>,
    /// Full names and values, in order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// GNU tar's three ways to describe a sparse file in PAX records ("Storing
/// Sparse Files" in its manual).
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.0, 0.1) or `GNU.sparse.realsize` (1.0).
    pub real_size: Option<u64>,
    /// Offsets and lengths in turn: the 0.0 form's repeated records and the
    /// 0.1 form's list come to the same.
    pub map: Option<Vec<u64>>,
}

impl Pax {
    /// Adds the records of `bytes`; later ones win.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) -> Result<(), PaxProblem> {
        while !bytes.is_empty() {
            let (record, rest) = split_record(bytes).ok_or(PaxProblem::Record)?;
            let equals = record.iter().position(|b| *b == b'=');
            let (key, value) = record.split_at(equals.ok_or(PaxProblem::Record)?);
            self.set(key, &value[1..])?;
            bytes = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxProblem> {
        if key.is_empty() || key.contains(&0) {
            return Err(PaxProblem::Record);
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes back what an earlier header said.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let number = |key| {
            let parse = || number::parse_decimal(value).ok_or(PaxProblem::Value(key));
            (!value.is_empty()).then(parse).transpose()
        };
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link_path = text,
            b"size" => {
                // Signed in every file system interface.
                let size = number("size")?;
                if size.is_some_and(|size| i64::try_from(size).is_err()) {
                    return Err(PaxProblem::Value("size"));
                }
                self.size = size;
            }
            b"uid" => self.uid = number("uid")?,
            b"gid" => self.gid = number("gid")?,
            b"mtime" => {
                let parse = || parse_time(value).ok_or(PaxProblem::Value("mtime"));
                self.mtime = (!value.is_empty()).then(parse).transpose()?;
            }
            b"GNU.sparse.major" => self.sparse.major = number("GNU.sparse.major")?,
            b"GNU.sparse.minor" => self.sparse.minor = number("GNU.sparse.minor")?,
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.size" => self.sparse.real_size = number("GNU.sparse.size")?,
            b"GNU.sparse.realsize" => self.sparse.real_size = number("GNU.sparse.realsize")?,
            b"GNU.sparse.offset" => self.push_sparse(value, 0, "GNU.sparse.offset")?,
            b"GNU.sparse.numbytes" => self.push_sparse(value, 1, "GNU.sparse.numbytes")?,
            b"GNU.sparse.map" => {
                let parse =
                    |part| number::parse_decimal(part).ok_or(PaxProblem::Value("GNU.sparse.map"));
                // Empty: a file of nothing but a hole.
                let parts = value.split(|b| *b == b',').filter(|_| !value.is_empty());
                self.sparse.map = Some(parts.map(parse).collect::<Result<_, _>>()?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds one half of a segment; `parity` is 0 for an offset.
    fn push_sparse(
        &mut self,
        value: &[u8],
        parity: usize,
        key: &'static str,
    ) -> Result<(), PaxProblem> {
        let number = number::parse_decimal(value).ok_or(PaxProblem::Value(key))?;
        let map = self.sparse.map.get_or_insert_default();
        if map.len() % 2 != parity {
            return Err(PaxProblem::Value(key));
        }
        map.push(number);
        Ok(())
    }

    /// What must not come from a global header: it would rename or reframe
    /// every file after it, and readers disagree on whether it does.
    pub(super) fn only_for_one_file(&self) -> Option<&'static str> {
        let sparse = &self.sparse;
        [
            (self.path.is_some(), "path"),
            (self.link_path.is_some(), "linkpath"),
            (self.size.is_some(), "size"),
            (sparse.major.is_some(), "GNU.sparse.major"),
            (sparse.minor.is_some(), "GNU.sparse.minor"),
            (sparse.name.is_some(), "GNU.sparse.name"),
            (sparse.real_size.is_some(), "GNU.sparse.realsize"),
            (sparse.map.is_some(), "GNU.sparse.map"),
            // Kept, these would be copied for every entry of the archive.
            (!self.xattrs.is_empty(), "SCHILY.xattr"),
        ]
        .into_iter()
        .find_map(|(given, key)| given.then_some(key))
    }
}

/// Splits `LENGTH KEY=VALUE\n`, LENGTH counting all of it, from what follows.
/// Returns `KEY=VALUE`.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    // No length has more digits than a 64-bit number.
    let space = bytes.iter().take(21).position(|b| *b == b' ')?;
    let length = usize::try_from(number::parse_decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    Some((record, rest))
}

/// Reads seconds since 1970 with an optional sign and fraction. Digits beyond
/// nanoseconds are cut off.
fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let whole = i64::try_from(number::parse_decimal(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0_u32, |value, index| {
        let digit = fraction.get(index).map_or(0, |b| b - b'0');
        value * 10 + u32::from(digit)
    });
    // Before 1970 the seconds round down and the fraction counts up from there.
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds: whole,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -whole,
            nanoseconds: 0,
        },
        (true, _) => Timestamp {
            seconds: -whole - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Option<(i64, u32)> {
        parse_time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds))
    }

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        assert_eq!(time("0"), Some((0, 0)));
        assert_eq!(time("1.5"), Some((1, 500_000_000)));
        assert_eq!(time("1.000000001999"), Some((1, 1)));
        assert_eq!(time("7."), Some((7, 0)));
        assert_eq!(time("-1"), Some((-1, 0)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-0.000000001"), Some((-1, 999_999_999)));
        assert_eq!(
            time("-9223372036854775807.5"),
            Some((i64::MIN, 500_000_000))
        );
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "-",
            ".5",
            "1.x",
            "1.-5",
            "--1",
            "1e3",
            "9223372036854775808",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn values_may_hold_any_byte() {
        let mut pax = Pax::default();
        pax.extend(b"30 SCHILY.xattr.user.a=\n=\0\xff\n.\n")
            .unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"\n=\0\xff\n.".to_vec())]);
    }

    #[test]
    fn later_records_win_and_empty_ones_take_back() {
        let mut pax = Pax::default();
        pax.extend(b"9 path=a\n9 path=b\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        pax.extend(b"8 path=\n").unwrap();
        assert_eq!(pax.path, None);
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for bytes in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"5\n",
            b"path=a\n",
            b"0 path=a\n",
            b"1 path=a\n",
            b"99999999999999999999999 path=a\n",
            b"18446744073709551615 path=a\n",
            b"7 path\n",
            b"6 =ab\n",
            b"10 pa\0th=\n",
        ] {
            let result = Pax::default().extend(bytes);
            assert_eq!(result.unwrap_err(), PaxProblem::Record, "{bytes:?}");
        }
    }

    #[test]
    fn both_old_sparse_forms_give_the_same_map() {
        let mut repeated = Pax::default();
        repeated
            .extend(
                b"23 GNU.sparse.offset=0\n25 GNU.sparse.numbytes=5\n\
                  24 GNU.sparse.offset=99\n25 GNU.sparse.numbytes=1\n",
            )
            .unwrap();
        let mut listed = Pax::default();
        listed.extend(b"27 GNU.sparse.map=0,5,99,1\n").unwrap();
        assert_eq!(repeated.sparse.map, Some(vec![0, 5, 99, 1]));
        assert_eq!(listed.sparse.map, repeated.sparse.map);
    }

    #[test]
    fn a_sparse_length_without_its_offset_is_refused() {
        let result = Pax::default().extend(b"25 GNU.sparse.numbytes=5\n");
        assert_eq!(
            result.unwrap_err(),
            PaxProblem::Value("GNU.sparse.numbytes")
        );
    }
}
