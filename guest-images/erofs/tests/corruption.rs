//! Blobs that a disk has corrupted: reading and merging them ends in a value or
//! an error, and soon.

mod support;

use std::collections::HashSet;
use std::io::Cursor;
use std::sync::LazyLock;

use erofs::image::ImageError;
use erofs::{FileType, Image, Limits, merge};
use proptest::prelude::*;
use support::tar_builder::TarBuilder;
use support::tools;

/// A blob with one of everything that the reader has code for.
static BLOB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut tar = TarBuilder::new()
        .directory("d", 0o755)
        .pax(&[("SCHILY.xattr.user.a", b"b"), ("SCHILY.xattr.user.c", b"")])
        .file("f", &[1; 5000])
        .hard_link("g", "f")
        .symlink("s", "target")
        .symlink("long", &"t".repeat(4090))
        .char_device("null", 1, 3)
        .pax(&[
            ("GNU.sparse.size", b"900000"),
            ("GNU.sparse.map", b"0,5,800000,5"),
        ])
        .file("sparse", b"helloworld")
        .file("d/.wh.gone", b"");
    for n in 0..400 {
        tar = tar.file(&format!("d/a rather long name {n}"), b"");
    }
    tools::blob_of(&tar.finish())
});

/// Reads all there is, each directory once.
fn walk(image: &Image<&[u8]>) -> Result<(), ImageError> {
    let mut seen = HashSet::new();
    let mut pending = vec![image.root()?];
    while let Some(inode) = pending.pop() {
        let _ = image.xattrs(&inode)?;
        match inode.file_type() {
            FileType::Directory if seen.insert(inode.nid()) => {
                for entry in image.entries(&inode)? {
                    pending.push(image.inode(entry.nid)?);
                }
            }
            FileType::Regular => {
                let mut buffer = [0; 10_000];
                for offset in [0, 795_000, inode.size().saturating_sub(5000)] {
                    image.read_at(&inode, &mut buffer, offset)?;
                }
            }
            FileType::Symlink => {
                image.read_link(&inode)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn the_blob_is_sound_before_it_is_corrupted() {
    tools::fsck(&BLOB);
    walk(&tools::open(&BLOB)).unwrap();
}

#[test]
fn a_blob_of_another_length_is_refused() {
    for length in [0, 100, 4096, BLOB.len() - 4096, BLOB.len() - 1] {
        let result = Image::open(&BLOB[..length], length as u64);
        assert!(matches!(result, Err(ImageError::Size { .. })), "{length}");
    }
    let longer = [BLOB.as_slice(), &[0; 4096]].concat();
    let result = Image::open(&longer, longer.len() as u64);
    assert!(matches!(result, Err(ImageError::Size { .. })));
}

#[test]
fn a_reader_that_has_less_than_it_said_is_an_error() {
    let half = &BLOB[..BLOB.len() / 2];
    let image = Image::open(half, BLOB.len() as u64).unwrap();
    assert!(matches!(walk(&image), Err(ImageError::Read { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(3000)
    })]

    #[test]
    fn a_corrupted_blob_is_read_to_a_value_or_an_error(
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<u8>()),
            1..20,
        ),
        most_at_inodes in any::<bool>(),
    ) {
        let mut blob = BLOB.clone();
        // Three blocks of content, then the inodes; the superblock has a
        // checksum, and a test of its own.
        let metadata = 5 * 4096;
        let range = if most_at_inodes { 1500 } else { blob.len() - metadata };
        for (place, byte) in damage {
            blob[metadata + place.index(range)] = byte;
        }
        let image = tools::open(&blob);
        let _ = walk(&image);
        let limits = Limits {
            max_blob_bytes: 1 << 20,
            max_entries: 10_000,
            ..Limits::default()
        };
        let mut out = Cursor::new(Vec::new());
        if let Ok(summary) = merge::write(&[image], &mut out, &limits) {
            let mut disk = out.into_inner();
            disk.extend_from_slice(&blob);
            prop_assert_eq!(disk.len() as u64, summary.disk_bytes);
            // What was taken over is sound.
            walk(&tools::open(&disk)).unwrap();
        }
    }
}
