//! What one layer or image may cost the host.

/// Bounds on the work, memory and disk that an input can ask for.
///
/// The defaults are far beyond any image seen in a registry and well within
/// what a host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The longest tar stream, in bytes after decompression. Bounds the time
    /// spent on data that never reaches the blob.
    pub max_tar_bytes: u64,
    /// The largest blob, in bytes. At most 16 TiB fit the format (2³² blocks).
    pub max_blob_bytes: u64,
    /// The most names in one tree. Each costs about 250 bytes of memory.
    pub max_entries: u64,
    /// The most bytes of names, symbolic link targets, extended attributes and
    /// sparse maps in one tree. All of them are held in memory.
    pub max_metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_tar_bytes: 128 << 30,
            max_blob_bytes: 128 << 30,
            max_entries: 4_000_000,
            max_metadata_bytes: 1 << 30,
        }
    }
}
