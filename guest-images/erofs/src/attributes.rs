//! What a file has besides its name and content.

use std::fmt;

/// A point in time, in the way of `struct timespec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC; negative before.
    pub seconds: i64,
    /// Nanoseconds to add, below 1,000,000,000, also before 1970.
    pub nanoseconds: u32,
}

/// Permissions, owner and time of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits including set-user-id, set-group-id and sticky: `0o7777`.
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last modification.
    pub mtime: Timestamp,
}

impl Attributes {
    /// Attributes of a directory that nothing describes: 0755, root, 1970. A
    /// constant, so that the same input gives the same blob at any time.
    pub(crate) const UNDESCRIBED_DIRECTORY: Self = Self {
        permissions: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            seconds: 0,
            nanoseconds: 0,
        },
    };

    /// Attributes of a whiteout: no permissions, root, 1970.
    pub(crate) const WHITEOUT: Self = Self {
        permissions: 0,
        ..Self::UNDESCRIBED_DIRECTORY
    };
}

/// The number of a character or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    major: u32,
    minor: u32,
}

impl DeviceNumber {
    /// The device that overlayfs takes for "deleted here".
    pub const WHITEOUT: Self = Self { major: 0, minor: 0 };

    /// `None` beyond Linux's 12 bits of major and 20 bits of minor number
    /// (`include/linux/kdev_t.h`).
    pub fn new(major: u32, minor: u32) -> Option<Self> {
        (major < 1 << 12 && minor < 1 << 20).then_some(Self { major, minor })
    }

    /// The major number, 0 to 4095.
    pub fn major(self) -> u32 {
        self.major
    }

    /// The minor number, 0 to 1,048,575.
    pub fn minor(self) -> u32 {
        self.minor
    }

    /// The form on disk: `new_encode_dev` of `include/linux/kdev_t.h`.
    pub(crate) fn encode(self) -> u32 {
        (self.minor & 0xff) | (self.major << 8) | ((self.minor & !0xff) << 12)
    }

    /// The inverse of [`Self::encode`]; every number decodes.
    pub(crate) fn decode(encoded: u32) -> Self {
        Self {
            major: (encoded >> 8) & 0xfff,
            minor: (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00),
        }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

impl FileType {
    /// The type bits of `st_mode` (inode(7)).
    pub(crate) fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
        }
    }

    pub(crate) fn from_mode(mode: u16) -> Option<Self> {
        [
            Self::Regular,
            Self::Directory,
            Self::Symlink,
            Self::CharDevice,
            Self::BlockDevice,
            Self::Fifo,
        ]
        .into_iter()
        .find(|kind| kind.mode_bits() == mode & 0o170_000)
    }

    /// The type in a directory entry (`FT_*` of `include/linux/fs_types.h`).
    pub(crate) fn directory_entry_type(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_number_survives_its_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (259, 65_536), (4095, (1 << 20) - 1)] {
            let device = DeviceNumber::new(major, minor).unwrap();
            assert_eq!(DeviceNumber::decode(device.encode()), device);
        }
        // From kdev_t.h: minor's low byte, then 12 bits of major, then the rest.
        assert_eq!(DeviceNumber::new(8, 17).unwrap().encode(), 0x811);
        assert_eq!(DeviceNumber::new(8, 0x117).unwrap().encode(), 0x10_0817);
    }

    #[test]
    fn a_device_number_linux_cannot_hold_is_refused() {
        assert_eq!(DeviceNumber::new(4096, 0), None);
        assert_eq!(DeviceNumber::new(0, 1 << 20), None);
    }
}
