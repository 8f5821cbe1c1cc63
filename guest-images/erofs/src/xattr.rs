//! Extended attributes and their form beside an EROFS inode.

use crate::format::{XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES};

/// `XATTR_NAME_MAX`, the prefix included.
const NAME_MAX: usize = 255;

/// The length field of a value has 16 bits.
const VALUE_MAX: usize = u16::MAX as usize;

/// The length field of all attributes of an inode counts words in 16 bits, and
/// the header as one of them.
const TOTAL_MAX: usize = XATTR_HEADER_BYTES + 4 * (u16::MAX as usize - 1) - MARKERS_BYTES;

/// Attributes of directories that this crate itself sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    /// Hides the directory of the same name below, as overlayfs reads it.
    Opaque,
    /// A directory that a layer needs but does not describe, such as the parent
    /// of a file that came without an entry of its own. When layers merge it
    /// must not replace the attributes of a directory below.
    Implicit,
}

/// What [`Marker`]s take beside an inode, kept free for them.
const MARKERS_BYTES: usize = 64;

impl Marker {
    const VALUE: &[u8] = b"y";

    fn suffix(self) -> &'static [u8] {
        match self {
            Self::Opaque => b"overlay.opaque",
            Self::Implicit => b"mote.implicit",
        }
    }

    fn is(self, xattr: &Xattr) -> bool {
        xattr.index == TRUSTED && *xattr.suffix == *self.suffix()
    }
}

/// Namespaces of which the layers' authors own no name.
const RESERVED: [&[u8]; 2] = [b"trusted.overlay.", b"trusted.mote."];

const TRUSTED: u8 = 4;

/// The prefixes that an entry abbreviates (`EROFS_XATTR_INDEX_*`), and whether
/// the prefix is the whole name.
const PREFIXES: [(u8, &[u8], bool); 5] = [
    (1, b"user.", false),
    (2, b"system.posix_acl_access", true),
    (3, b"system.posix_acl_default", true),
    (TRUSTED, b"trusted.", false),
    (6, b"security.", false),
];

/// Why an extended attribute cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XattrProblem {
    /// The name exceeds 255 bytes or contains a NUL byte.
    #[error("its name is longer than {NAME_MAX} bytes or contains a NUL byte")]
    Name,
    /// The value exceeds 65,535 bytes.
    #[error("its value is longer than {VALUE_MAX} bytes")]
    Value,
    /// All attributes of the file together exceed the format.
    #[error("the attributes of this file take more than {TOTAL_MAX} bytes")]
    Total,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    index: u8,
    suffix: Box<[u8]>,
    value: Box<[u8]>,
}

impl Xattr {
    /// `Ok(None)` for a name that EROFS has no place for, or that belongs to
    /// the machinery which mounts layers: a layer that could say
    /// `trusted.overlay.redirect` would choose what another layer's names mean.
    pub(crate) fn from_layer(name: &[u8], value: &[u8]) -> Result<Option<Self>, XattrProblem> {
        if RESERVED.iter().any(|prefix| name.starts_with(prefix)) {
            return Ok(None);
        }
        Self::new(name, value)
    }

    pub(crate) fn new(name: &[u8], value: &[u8]) -> Result<Option<Self>, XattrProblem> {
        if name.len() > NAME_MAX || name.contains(&0) {
            return Err(XattrProblem::Name);
        }
        if value.len() > VALUE_MAX {
            return Err(XattrProblem::Value);
        }
        let found = PREFIXES.iter().find_map(|(index, prefix, whole)| {
            let suffix = name.strip_prefix(*prefix)?;
            (suffix.is_empty() == *whole).then_some((*index, suffix))
        });
        Ok(found.map(|(index, suffix)| Self {
            index,
            suffix: suffix.into(),
            value: value.into(),
        }))
    }

    /// From an entry on disk; `None` if the index is not one we write.
    pub(crate) fn from_disk(index: u8, suffix: &[u8], value: &[u8]) -> Option<Self> {
        let (_, _, whole) = PREFIXES.iter().find(|(known, ..)| *known == index)?;
        (suffix.is_empty() == *whole).then(|| Self {
            index,
            suffix: suffix.into(),
            value: value.into(),
        })
    }

    /// The full name, such as `security.capability`.
    pub fn name(&self) -> Vec<u8> {
        let prefix = PREFIXES
            .iter()
            .find(|(index, ..)| *index == self.index)
            .map_or(&b""[..], |(_, prefix, _)| prefix);
        [prefix, &*self.suffix].concat()
    }

    /// The value: any bytes.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        (size_of::<Self>() + self.suffix.len() + self.value.len()) as u64
    }

    fn disk_bytes(&self) -> usize {
        (XATTR_ENTRY_BYTES + self.suffix.len() + self.value.len()).next_multiple_of(4)
    }
}

/// The attributes of one inode, sorted, no name twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Xattrs(Vec<Xattr>);

impl Xattrs {
    /// What was read from beside an inode, and so fits there.
    pub(crate) fn from_disk(mut xattrs: Vec<Xattr>) -> Self {
        xattrs.sort();
        Self(xattrs)
    }

    /// Adds attributes; one that is there already gets the new value.
    pub(crate) fn set_all(
        &mut self,
        new: impl IntoIterator<Item = Xattr>,
    ) -> Result<(), XattrProblem> {
        // Sorted as a whole: a header can carry tens of thousands.
        self.0.extend(new);
        self.0
            .sort_by(|a, b| (a.index, &a.suffix).cmp(&(b.index, &b.suffix)));
        self.0.dedup_by(|later, earlier| {
            let same = later.index == earlier.index && later.suffix == earlier.suffix;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        if self.disk_bytes() > TOTAL_MAX {
            return Err(XattrProblem::Total);
        }
        Ok(())
    }

    /// Sets a marker. Room for it was kept.
    pub(crate) fn mark(&mut self, marker: Marker) {
        self.unmark(marker);
        let xattr = Xattr {
            index: TRUSTED,
            suffix: marker.suffix().into(),
            value: Marker::VALUE.into(),
        };
        let at = self.0.partition_point(|x| *x < xattr);
        self.0.insert(at, xattr);
    }

    /// Removes a marker and says whether it was set.
    pub(crate) fn unmark(&mut self, marker: Marker) -> bool {
        let before = self.0.len();
        self.0.retain(|xattr| !marker.is(xattr));
        self.0.len() < before
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Xattr> {
        self.0.iter()
    }

    pub(crate) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    /// Size beside the inode: a multiple of 4, 0 without attributes.
    pub(crate) fn disk_bytes(&self) -> usize {
        match self.0.as_slice() {
            [] => 0,
            some => XATTR_HEADER_BYTES + some.iter().map(Xattr::disk_bytes).sum::<usize>(),
        }
    }

    /// The inode's `i_xattr_icount`: words, the 12-byte header counted as one.
    pub(crate) fn word_count(&self) -> u16 {
        match self.disk_bytes() {
            0 => 0,
            bytes => u16::try_from((bytes - XATTR_HEADER_BYTES) / 4 + 1).unwrap_or(u16::MAX),
        }
    }

    /// Appends the form on disk to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if self.0.is_empty() {
            return;
        }
        out.extend_from_slice(&[0; XATTR_HEADER_BYTES]);
        for xattr in &self.0 {
            // Both lengths were checked when the attribute was made.
            let value_bytes = u16::try_from(xattr.value.len()).unwrap_or(u16::MAX);
            out.push(u8::try_from(xattr.suffix.len()).unwrap_or(u8::MAX));
            out.push(xattr.index);
            out.extend_from_slice(&value_bytes.to_le_bytes());
            out.extend_from_slice(&xattr.suffix);
            out.extend_from_slice(&xattr.value);
            let unpadded = XATTR_ENTRY_BYTES + xattr.suffix.len() + xattr.value.len();
            out.resize(out.len() + xattr.disk_bytes() - unpadded, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr::new(name.as_bytes(), value).unwrap().unwrap()
    }

    #[test]
    fn names_keep_their_prefix() {
        for name in [
            "user.a",
            "trusted.b.c",
            "security.capability",
            "system.posix_acl_access",
            "system.posix_acl_default",
        ] {
            assert_eq!(xattr(name, b"").name(), name.as_bytes());
        }
    }

    #[test]
    fn names_without_a_place_in_erofs_are_left_out() {
        for name in ["user.", "system.nfs4_acl", "lustre.lov", "plain", ""] {
            assert_eq!(Xattr::from_layer(name.as_bytes(), b"v"), Ok(None), "{name}");
        }
    }

    #[test]
    fn a_layer_cannot_speak_to_overlayfs_or_to_the_merge() {
        for name in ["trusted.overlay.redirect", "trusted.mote.implicit"] {
            assert_eq!(Xattr::from_layer(name.as_bytes(), b"v"), Ok(None), "{name}");
        }
    }

    #[test]
    fn what_the_length_fields_cannot_hold_is_refused() {
        let long_name = [b"user.".as_slice(), &[b'n'; 251]].concat();
        assert_eq!(Xattr::new(&long_name, b""), Err(XattrProblem::Name));
        assert_eq!(Xattr::new(b"user.a\0b", b""), Err(XattrProblem::Name));
        assert_eq!(
            Xattr::new(b"user.a", &[0; 65_536]),
            Err(XattrProblem::Value)
        );
        let five = (0..5).map(|n| xattr(&format!("user.{n}"), &[0; 65_535]));
        assert_eq!(Xattrs::default().set_all(five), Err(XattrProblem::Total));
    }

    #[test]
    fn setting_again_replaces_the_value_and_keeps_the_order() {
        let mut set = Xattrs::default();
        set.set_all([xattr("user.b", b"1"), xattr("user.a", b"2")])
            .unwrap();
        set.set_all([xattr("user.b", b"3")]).unwrap();
        let all: Vec<_> = set.iter().map(|x| (x.name(), x.value().to_vec())).collect();
        assert_eq!(
            all,
            [
                (b"user.a".to_vec(), b"2".to_vec()),
                (b"user.b".to_vec(), b"3".to_vec())
            ]
        );
    }

    #[test]
    fn the_announced_size_is_the_encoded_size() {
        let mut set = Xattrs::default();
        for length in 0..9 {
            set.set_all([xattr(&format!("user.{length}"), &vec![7; length])])
                .unwrap();
            let mut bytes = Vec::new();
            set.encode(&mut bytes);
            assert_eq!(bytes.len(), set.disk_bytes());
            assert_eq!(bytes.len(), 12 + 4 * (usize::from(set.word_count()) - 1));
        }
    }
}
