//! The on-disk structures (Linux 6.1, `fs/erofs/erofs_fs.h`). All integers are
//! little-endian.

/// The block size. The kernel maps a file page by page, so it is a page.
pub const BLOCK_BYTES: u64 = 4096;

/// [`BLOCK_BYTES`] for sizes in memory.
pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;

/// Binary logarithm of [`BLOCK_BYTES`].
pub(crate) const BLOCK_BITS: u32 = BLOCK_BYTES.trailing_zeros();

/// Inodes are addressed in slots of this size, the "nid".
pub(crate) const SLOT_BYTES: u64 = 32;

/// An extended inode. The 32-byte form holds neither its own time nor large
/// ids, so it is never used.
pub(crate) const INODE_BYTES: usize = 64;

/// `struct erofs_xattr_ibody_header`, before the first attribute.
pub(crate) const XATTR_HEADER_BYTES: usize = 12;

/// `struct erofs_xattr_entry`, before each attribute's name and value.
pub(crate) const XATTR_ENTRY_BYTES: usize = 4;

/// `struct erofs_dirent`.
pub(crate) const DIRENT_BYTES: usize = 12;

/// One entry of a chunk-based file's block map.
pub(crate) const CHUNK_ENTRY_BYTES: u64 = 4;

/// A chunk that is all zeros and stored nowhere (`EROFS_NULL_ADDR`).
pub(crate) const HOLE: u32 = u32::MAX;

/// The largest block size exponent of a chunk: the low five bits of the format.
pub(crate) const MAX_CHUNK_BITS: u32 = 31;

const SUPERBLOCK_OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;

/// Where an inode's data is: the values of `i_format`'s layout bits in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataLayout {
    /// Consecutive blocks from `i_u`.
    Plain = 0,
    /// Consecutive blocks, then the rest right after the inode.
    Inline = 2,
    /// A block map right after the inode.
    Chunked = 4,
}

/// What is variable in our superblocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Size of the file system.
    pub blocks: u32,
    /// Where inode slot 0 is.
    pub meta_block: u32,
    /// Slot of the root directory.
    pub root_nid: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Whether any file is chunk-based.
    pub chunked: bool,
    /// Tells file systems apart. Overlayfs gives up stable inode numbers over
    /// lower layers without one.
    pub uuid: [u8; 16],
}

/// Why the first block is not a superblock that this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockProblem {
    /// The magic number is not EROFS'.
    #[error("its magic number is not that of EROFS")]
    Magic,
    /// The checksum is absent or does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// It uses a feature or block size that this crate never writes.
    #[error("it uses a feature this program does not write")]
    Feature,
}

impl Superblock {
    /// The first block of the file system.
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let incompat = if self.chunked {
            INCOMPAT_CHUNKED_FILE
        } else {
            0
        };
        let mut block = [0; BLOCK];
        let mut put = |offset: usize, bytes: &[u8]| {
            let at = SUPERBLOCK_OFFSET + offset;
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS as u8]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        put(48, &self.uuid);
        put(80, &incompat.to_le_bytes());
        let checksum = checksum(&block);
        block[SUPERBLOCK_OFFSET + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Reads the first block of a file system that this crate wrote.
    pub(crate) fn decode(block: &[u8; BLOCK]) -> Result<Self, SuperblockProblem> {
        let at = |offset: usize| SUPERBLOCK_OFFSET + offset;
        if u32_at(block, at(0)) != MAGIC {
            return Err(SuperblockProblem::Magic);
        }
        let compat = u32_at(block, at(8));
        if compat & COMPAT_CHECKSUM == 0 || u32_at(block, at(4)) != checksum(block) {
            return Err(SuperblockProblem::Checksum);
        }
        let incompat = u32_at(block, at(80));
        let plain = block[at(12)] == BLOCK_BITS as u8
            && block[at(13)] == 0
            && block[at(90)] == 0
            && u16_at(block, at(86)) == 0
            && incompat & !INCOMPAT_CHUNKED_FILE == 0;
        if !plain {
            return Err(SuperblockProblem::Feature);
        }
        Ok(Self {
            blocks: u32_at(block, at(36)),
            meta_block: u32_at(block, at(40)),
            root_nid: u16_at(block, at(14)),
            inodes: u64_at(block, at(16)),
            chunked: incompat & INCOMPAT_CHUNKED_FILE != 0,
            uuid: array_at(block, at(48)),
        })
    }
}

/// CRC-32C of everything from the superblock to the end of its block, with the
/// checksum itself as zeros, and without the final inversion: the kernel's
/// `crc32c()` leaves that to its callers, and EROFS does not.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let from = &block[SUPERBLOCK_OFFSET..];
    let mut sum = crc32c::crc32c(&from[..4]);
    sum = crc32c::crc32c_append(sum, &[0; 4]);
    !crc32c::crc32c_append(sum, &from[8..])
}

/// An extended inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawInode {
    pub layout: DataLayout,
    pub xattr_words: u16,
    pub mode: u16,
    pub size: u64,
    /// A block address, a device number or a chunk format.
    pub union: u32,
    /// What a 32-bit program sees as inode number.
    pub serial: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_seconds: i64,
    pub mtime_nanoseconds: u32,
    pub links: u32,
}

impl RawInode {
    const EXTENDED: u16 = 1;

    pub(crate) fn encode(&self) -> [u8; INODE_BYTES] {
        let mut inode = [0; INODE_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| {
            inode[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let format = Self::EXTENDED | (self.layout as u16) << 1;
        put(0, &format.to_le_bytes());
        put(2, &self.xattr_words.to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.union.to_le_bytes());
        put(20, &self.serial.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime_seconds.to_le_bytes());
        put(40, &self.mtime_nanoseconds.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        inode
    }

    /// `None` for a format that this crate never writes.
    pub(crate) fn decode(inode: &[u8; INODE_BYTES]) -> Option<Self> {
        let format = u16_at(inode, 0);
        let layout = [DataLayout::Plain, DataLayout::Inline, DataLayout::Chunked]
            .into_iter()
            .find(|layout| format == Self::EXTENDED | (*layout as u16) << 1)?;
        Some(Self {
            layout,
            xattr_words: u16_at(inode, 2),
            mode: u16_at(inode, 4),
            size: u64_at(inode, 8),
            union: u32_at(inode, 16),
            serial: u32_at(inode, 20),
            uid: u32_at(inode, 24),
            gid: u32_at(inode, 28),
            mtime_seconds: i64::from_le_bytes(array_at(inode, 32)),
            mtime_nanoseconds: u32_at(inode, 40),
            links: u32_at(inode, 44),
        })
    }
}

/// Reads `N` bytes. The callers' offsets are constants within the structure.
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            blocks: 1000,
            meta_block: 7,
            root_nid: 2,
            inodes: 99,
            chunked: true,
            uuid: *b"0123456789abcdef",
        }
    }

    #[test]
    fn a_superblock_reads_back() {
        assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    }

    #[test]
    fn a_superblock_with_any_bit_flipped_is_refused() {
        let good = superblock().encode();
        for bit in SUPERBLOCK_OFFSET * 8..BLOCK * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_inode_reads_back() {
        let inode = RawInode {
            layout: DataLayout::Chunked,
            xattr_words: 3,
            mode: 0o104_755,
            size: 5 << 32,
            union: 17,
            serial: 4,
            uid: 70_000,
            gid: u32::MAX - 1,
            mtime_seconds: -5,
            mtime_nanoseconds: 999_999_999,
            links: 65_537,
        };
        assert_eq!(RawInode::decode(&inode.encode()), Some(inode));
    }
}
