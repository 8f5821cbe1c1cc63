//! A layer's tar stream to EROFS, two of them to an image, and the image read back.
#![no_main]

use std::collections::HashSet;
use std::io::Cursor;

use erofs::image::ImageError;
use erofs::{FileType, Image, Limits, layer, merge};
use libfuzzer_sys::fuzz_target;

/// Inodes read back.
const MAX_READ: usize = 200;

fn limits() -> Limits {
    Limits {
        max_tar_bytes: 1 << 20,
        max_blob_bytes: 1 << 20,
        max_entries: 1000,
        max_metadata_bytes: 1 << 20,
    }
}

fn read_all(image: &Image<&[u8]>) -> Result<(), ImageError> {
    let mut pending = vec![image.root()?];
    let mut seen = HashSet::new();
    while let Some(inode) = pending.pop() {
        if seen.len() == MAX_READ || !seen.insert(inode.nid()) {
            continue;
        }
        image.xattrs(&inode)?;
        match inode.file_type() {
            FileType::Directory => {
                for entry in image.entries(&inode)? {
                    pending.push(image.inode(entry.nid)?);
                }
            }
            FileType::Regular => {
                for offset in [0, inode.size() / 2, inode.size().saturating_sub(100)] {
                    image.read_at(&inode, &mut [0; 5000], offset)?;
                }
            }
            FileType::Symlink => drop(image.read_link(&inode)?),
            _ => {}
        }
    }
    Ok(())
}

fn blob(tar: &[u8]) -> Option<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    let summary = layer::write(tar, &mut out, &limits()).ok()?;
    let blob = out.into_inner();
    assert_eq!(blob.len() as u64, summary.blob_bytes);
    assert_eq!(tar.len() as u64, summary.tar_bytes);
    Some(blob)
}

fn open(bytes: &[u8]) -> Image<&[u8]> {
    Image::open(bytes, bytes.len() as u64).expect("what was written can be opened")
}

fuzz_target!(|data: &[u8]| {
    // Where the second layer begins, if there are two.
    let Some((half, tar)) = data.split_first_chunk::<2>() else {
        return;
    };
    let middle = usize::from(u16::from_le_bytes(*half))
        .saturating_mul(512)
        .min(tar.len());
    let (lower, upper) = tar.split_at(middle);
    let (Some(lower), Some(upper)) = (blob(lower), blob(upper)) else {
        return;
    };
    for blob in [&lower, &upper] {
        read_all(&open(blob)).expect("what was written can be read");
    }
    let mut out = Cursor::new(Vec::new());
    if let Ok(summary) = merge::write(&[open(&lower), open(&upper)], &mut out, &limits()) {
        let disk = [out.into_inner(), lower, upper].concat();
        assert_eq!(disk.len() as u64, summary.disk_bytes);
        read_all(&open(&disk)).expect("what was merged can be read");
    }
});
