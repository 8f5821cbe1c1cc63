//! Names from a tar stream, made fit for an error message.

use std::fmt;

/// How much of a name an error message shows.
const SHOWN_BYTES: usize = 256;

/// A path or name as the input spelled it: any bytes.
///
/// [`Display`](fmt::Display) quotes it, escapes what a terminal would act on,
/// and cuts it after 256 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    /// The bytes, unescaped.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for EntryName {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES)];
        let cut = shown.len() < self.0.len();
        f.write_str("\"")?;
        for chunk in shown.utf8_chunks() {
            write!(f, "{}", chunk.valid().escape_debug())?;
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        f.write_str(if cut { "…\"" } else { "\"" })
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_drive_a_terminal_is_escaped() {
        let name = EntryName::from(b"a\x1b[2J\n\xffz".as_slice());
        assert_eq!(name.to_string(), r#""a\u{1b}[2J\n\xffz""#);
    }

    #[test]
    fn a_long_name_is_cut() {
        let name = EntryName::from([b'x'; 5000].as_slice());
        assert!(name.to_string().len() < 300);
        assert!(name.to_string().ends_with("…\""));
    }
}
