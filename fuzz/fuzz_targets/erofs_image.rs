//! EROFS images that a disk has corrupted: an input is a list of damages to one that
//! is sound, each three bytes: where, and by what.
#![no_main]

use std::io::Cursor;
use std::sync::LazyLock;

use erofs::image::ImageError;
use erofs::{FileType, Image, Limits, layer, merge};
use libfuzzer_sys::fuzz_target;

/// One of everything, packed by the seed program.
static TAR: &[u8] = include_bytes!("../everything.tar");

const SUPERBLOCK_BYTES: usize = 4096;
/// Inodes looked at: damage can make a directory its own child.
const MAX_READ: usize = 200;

fn limits() -> Limits {
    Limits {
        max_blob_bytes: 1 << 20,
        max_entries: 10_000,
        max_metadata_bytes: 1 << 20,
        ..Limits::default()
    }
}

static BLOB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = Cursor::new(Vec::new());
    layer::write(TAR, &mut out, &limits()).expect("a sound layer");
    out.into_inner()
});

fn walk(image: &Image<&[u8]>) -> Result<(), ImageError> {
    let mut pending = vec![image.root()?];
    for _ in 0..MAX_READ {
        let Some(inode) = pending.pop() else { break };
        image.xattrs(&inode)?;
        match inode.file_type() {
            FileType::Directory => {
                for entry in image.entries(&inode)?.into_iter().take(MAX_READ) {
                    pending.push(image.inode(entry.nid)?);
                }
            }
            FileType::Regular => {
                for offset in [0, inode.size().saturating_sub(5000), u64::MAX] {
                    image.read_at(&inode, &mut [0; 10_000], offset)?;
                }
            }
            FileType::Symlink => drop(image.read_link(&inode)?),
            _ => {}
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let mut blob = BLOB.clone();
    // The superblock has a checksum.
    let range = blob.len() - SUPERBLOCK_BYTES;
    for damage in data.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([damage[0], damage[1]]));
        blob[SUPERBLOCK_BYTES + place % range] ^= damage[2];
    }
    let open = || Image::open(blob.as_slice(), blob.len() as u64).expect("a sound superblock");
    let _ = walk(&open());
    let mut out = Cursor::new(Vec::new());
    if let Ok(summary) = merge::write(&[open()], &mut out, &limits()) {
        let disk = [out.into_inner(), blob.clone()].concat();
        assert_eq!(disk.len() as u64, summary.disk_bytes);
        let image = Image::open(disk.as_slice(), disk.len() as u64).expect("a sound image");
        walk(&image).expect("what was taken over is sound");
    }
});
