//! What GNU tar packs and unpacks, an image must hold.

mod support;

use std::fs;

use proptest::prelude::*;
use support::snapshot::{self, Content};
use support::tools::{self, TAR_FORMATS};
use support::{random_tree, snapshot::assert_same};

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(60)
    })]

    #[test]
    fn a_blob_holds_what_gnu_tar_unpacks(
        nodes in random_tree::tree(1..60),
        format in prop::sample::select(&TAR_FORMATS),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["made", "unpacked", "extracted"] {
            fs::create_dir(at(name)).unwrap();
        }
        random_tree::make(&at("made"), &nodes);
        tools::tar_create(&at("made"), &at("layer.tar"), format);
        tools::tar_extract(&at("layer.tar"), &at("unpacked"));
        let (blob, _) = tools::convert_file(&at("layer.tar"));

        let expected = snapshot::of_directory(&at("unpacked"));
        let bytes = fs::read(&blob).unwrap();
        let (again, _) = tools::convert(&fs::read(at("layer.tar")).unwrap()).unwrap();
        prop_assert!(again == bytes);
        assert_same(&expected, &snapshot::of_image(&tools::open(&bytes)), "our reader");

        tools::fsck_extract(&blob, &at("extracted"));
        let mut extracted = snapshot::of_directory(&at("extracted"));
        let mut expected = snapshot::as_fsck_restores(expected);
        extracted = snapshot::as_fsck_restores(extracted);
        assert_same(&expected, &extracted, "fsck.erofs");

        // The same once more, through an image of this one layer.
        let disk = tools::disk_of(&[bytes]);
        expected = snapshot::of_directory(&at("unpacked"));
        assert_same(&expected, &snapshot::of_image(&tools::open(&disk)), "merged");
        tools::fsck(&disk);
    }
}

#[test]
fn the_same_tar_gives_the_same_blob() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("made")).unwrap();
    for name in ["z", "a", "m"] {
        fs::write(at("made").join(name), name.repeat(5000)).unwrap();
    }
    tools::tar_create(&at("made"), &at("layer.tar"), TAR_FORMATS[2]);
    let tar = fs::read(at("layer.tar")).unwrap();
    let blob = tools::blob_of(&tar);
    assert!(blob == tools::blob_of(&tar));
    assert!(
        tools::disk_of(std::slice::from_ref(&blob)) == tools::disk_of(std::slice::from_ref(&blob))
    );
}

#[test]
fn a_sparse_file_takes_the_space_of_its_data() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for format in TAR_FORMATS {
        if format.sparse.is_none() {
            continue;
        }
        let made = at("made");
        fs::create_dir(&made).unwrap();
        let file = fs::File::create(made.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", (1 << 30) - 3).unwrap();
        tools::tar_create(&made, &at("layer.tar"), format);
        let (blob, summary) = tools::convert_file(&at("layer.tar"));
        assert!(summary.blob_bytes < 1 << 20, "{format:?}: {summary:?}");
        tools::fsck_file(&blob);
        let image = fs::read(&blob).unwrap();
        let image = tools::open(&image);
        let inode = image.lookup(b"sparse").unwrap().unwrap();
        assert_eq!(inode.size(), 1 << 30);
        let mut tail = [1; 9];
        assert_eq!(image.read_at(&inode, &mut tail, (1 << 30) - 8).unwrap(), 8);
        assert_eq!(&tail, b"\0\0\0\0\0end\x01");
        fs::remove_dir_all(&made).unwrap();
    }
}

#[test]
fn an_empty_directory_is_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("made")).unwrap();
    tools::tar_create(&at("made"), &at("layer.tar"), TAR_FORMATS[0]);
    let (blob, summary) = tools::convert_file(&at("layer.tar"));
    tools::fsck_file(&blob);
    assert_eq!(summary.inodes, 1);
    let bytes = fs::read(&blob).unwrap();
    let snapshot = snapshot::of_image(&tools::open(&bytes));
    assert_eq!(snapshot.len(), 1);
    assert_eq!(snapshot[&b""[..]].content, Content::Directory);
}
