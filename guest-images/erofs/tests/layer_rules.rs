//! What a layer's blob holds for entries that meet: repeated, replaced, hidden.

mod support;

use std::collections::BTreeMap;

use erofs::BLOCK_BYTES;
use support::snapshot::{self, Content, Facts, Snapshot};
use support::tar_builder::{Header, TarBuilder};
use support::tools;

fn tree(tar: TarBuilder) -> Snapshot {
    let blob = tools::blob_of(&tar.finish());
    tools::fsck(&blob);
    snapshot::of_image(&tools::open(&blob))
}

fn paths(tree: &Snapshot) -> Vec<String> {
    let text = |path: &Vec<u8>| String::from_utf8(path.clone()).unwrap();
    tree.keys()
        .map(text)
        .filter(|path| !path.is_empty())
        .collect()
}

fn facts<'a>(tree: &'a Snapshot, path: &str) -> &'a Facts {
    &tree[path.as_bytes()]
}

fn file(bytes: &[u8]) -> Content {
    Content::File(bytes.to_vec())
}

#[test]
fn the_last_of_repeated_entries_wins() {
    let tree = tree(
        TarBuilder::new()
            .file("a", b"first")
            .symlink("b", "a")
            .file("a", b"second")
            .file("b", b"no link"),
    );
    assert_eq!(facts(&tree, "a").content, file(b"second"));
    assert_eq!(facts(&tree, "b").content, file(b"no link"));
}

#[test]
fn replacing_one_name_leaves_the_other_names_of_the_file() {
    let tree = tree(
        TarBuilder::new()
            .file("a", b"old")
            .hard_link("b", "a")
            .hard_link("c", "b")
            .file("a", b"new"),
    );
    assert_eq!(facts(&tree, "a").content, file(b"new"));
    assert_eq!(facts(&tree, "a").links, 1);
    assert_eq!(facts(&tree, "b").content, file(b"old"));
    assert_eq!(facts(&tree, "b").links, 2);
    assert_eq!(facts(&tree, "c").first_name, b"b");
}

#[test]
fn a_link_to_itself_changes_nothing() {
    let tree = tree(TarBuilder::new().file("a", b"x").hard_link("./a", "a"));
    assert_eq!(facts(&tree, "a").content, file(b"x"));
    assert_eq!(facts(&tree, "a").links, 1);
}

#[test]
fn a_directory_again_takes_the_new_attributes_and_keeps_what_is_in_it() {
    let tree = tree(
        TarBuilder::new()
            .pax(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"1")])
            .directory("d", 0o700)
            .file("d/f", b"x")
            .pax(&[("SCHILY.xattr.user.b", b"2")])
            .directory("d/", 0o755),
    );
    assert_eq!(paths(&tree), ["d", "d/f"]);
    assert_eq!(facts(&tree, "d").permissions, 0o755);
    let expected = [("user.a", "1"), ("user.b", "2")];
    let expected = expected.map(|(name, value)| (name.into(), value.into()));
    assert_eq!(facts(&tree, "d").xattrs, BTreeMap::from(expected));
}

#[test]
fn anything_else_over_a_directory_replaces_all_of_it() {
    let tree = tree(
        TarBuilder::new()
            .file("d/e/f", b"x")
            .symlink("d", "elsewhere"),
    );
    assert_eq!(paths(&tree), ["d"]);
    assert_eq!(
        facts(&tree, "d").content,
        Content::Symlink(b"elsewhere".into())
    );
}

#[test]
fn a_directory_replaces_a_symbolic_link_to_one() {
    let tree = tree(
        TarBuilder::new()
            .directory("real", 0o755)
            .symlink("d", "real")
            .directory("d", 0o755)
            .file("d/f", b"x"),
    );
    assert_eq!(paths(&tree), ["d", "d/f", "real"]);
}

#[test]
fn missing_parents_are_made_and_marked() {
    let tree = tree(TarBuilder::new().file("a/b/f", b"x"));
    for path in ["", "a", "a/b"] {
        let facts = facts(&tree, path);
        assert_eq!((facts.permissions, facts.uid, facts.gid), (0o755, 0, 0));
        assert_eq!(facts.mtime, (0, 0));
        assert_eq!(facts.xattrs[&b"trusted.mote.implicit"[..]], b"y");
    }
    // An entry of its own ends that.
    let tree = self::tree(TarBuilder::new().file("a/f", b"x").directory("a", 0o700));
    assert_eq!(facts(&tree, "a").permissions, 0o700);
    assert!(facts(&tree, "a").xattrs.is_empty());
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let tree = tree(
        TarBuilder::new()
            .directory("d", 0o755)
            .file("d/.wh.gone", b"")
            .file(".wh.top", b"ignored content")
            .directory("o", 0o755)
            .file("o/.wh..wh..opq", b""),
    );
    assert_eq!(paths(&tree), ["d", "d/gone", "o", "top"]);
    for path in ["d/gone", "top"] {
        assert_eq!(facts(&tree, path).content, Content::CharDevice(0, 0));
        assert_eq!(facts(&tree, path).permissions, 0);
    }
    assert_eq!(
        facts(&tree, "o").xattrs[&b"trusted.overlay.opaque"[..]],
        b"y"
    );
    assert!(facts(&tree, "d").xattrs.is_empty());
}

#[test]
fn a_whiteout_does_not_hide_what_its_own_layer_brings() {
    let before_and_after = [
        TarBuilder::new()
            .file(".wh.d", b"")
            .file(".wh.f", b"")
            .file("f", b"new")
            .directory("d", 0o755)
            .file("d/g", b"new"),
        TarBuilder::new()
            .file("f", b"new")
            .directory("d", 0o755)
            .file("d/g", b"new")
            .file(".wh.d", b"")
            .file(".wh.f", b""),
    ];
    for tar in before_and_after {
        let tree = tree(tar);
        assert_eq!(paths(&tree), ["d", "d/g", "f"]);
        assert_eq!(facts(&tree, "f").content, file(b"new"));
        // Below the new directory nothing of the old one may show.
        assert!(
            facts(&tree, "d")
                .xattrs
                .contains_key(&b"trusted.overlay.opaque"[..])
        );
    }
}

#[test]
fn names_of_aufs_are_left_out() {
    let tree = tree(
        TarBuilder::new()
            .file(".wh..wh.aufs", b"")
            .directory(".wh..wh.plnk", 0o700)
            .file(".wh..wh.plnk/12.34", b"x")
            .file("f", b"x"),
    );
    assert_eq!(paths(&tree), ["f"]);
}

#[test]
fn attributes_that_would_speak_to_overlayfs_are_left_out_and_counted() {
    let tar = TarBuilder::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.mote.implicit", b"y"),
            ("SCHILY.xattr.system.nfs4_acl", b"x"),
            ("SCHILY.xattr.trusted.kept", b"x"),
        ])
        .directory("d", 0o755)
        .finish();
    let (blob, summary) = tools::convert(&tar).unwrap();
    assert_eq!(summary.dropped_xattrs, 3);
    let tree = snapshot::of_image(&tools::open(&blob));
    let names: Vec<_> = facts(&tree, "d").xattrs.keys().cloned().collect();
    assert_eq!(names, [b"trusted.kept".to_vec()]);
}

#[test]
fn extended_attributes_of_every_size_are_kept() {
    let values: Vec<Vec<u8>> = [0, 1, 3, 4, 4000, 4096, 65_535]
        .iter()
        .map(|length| (0..*length).map(|n| (n % 255) as u8).collect())
        .collect();
    let names: Vec<_> = (0..7).map(|n| format!("SCHILY.xattr.user.n{n}")).collect();
    let records: Vec<_> = names
        .iter()
        .zip(&values)
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .collect();
    // Beside a symbolic link too, whose target then no longer fits its inode.
    let tar = TarBuilder::new()
        .pax(&records)
        .file("f", b"x")
        .pax(&records[..5])
        .symlink("s", &"t".repeat(300));
    let tree = tree(tar);
    let found: Vec<_> = facts(&tree, "f").xattrs.values().cloned().collect();
    assert_eq!(found, values);
    assert_eq!(facts(&tree, "s").xattrs.len(), 5);
    assert_eq!(facts(&tree, "s").content, Content::Symlink(vec![b't'; 300]));
}

#[test]
fn files_are_aligned_to_blocks_and_have_no_inline_tail() {
    let tar = TarBuilder::new()
        .file("a", b"tiny")
        .file("b", &[1; 4097])
        .finish();
    let blob = tools::blob_of(&tar);
    assert_eq!(&blob[BLOCK_BYTES as usize..][..5], b"tiny\0");
    assert_eq!(
        blob[2 * BLOCK_BYTES as usize..][..4098],
        [&[1; 4097][..], &[0]].concat()
    );
}

#[test]
fn a_type_flag_of_a_file_and_a_trailing_slash_make_a_directory() {
    let tree = tree(TarBuilder::new().add(&Header {
        path: b"old/",
        type_flag: 0,
        mode: 0o755,
        ..Header::default()
    }));
    assert_eq!(facts(&tree, "old").content, Content::Directory);
}

#[test]
fn links_and_directories_have_no_data_whatever_their_size_says() {
    let sized = |path, type_flag, link| Header {
        path,
        type_flag,
        link,
        size: Some(1 << 20),
        ..Header::default()
    };
    let tree = tree(
        TarBuilder::new()
            .file("f", b"x")
            .add(&sized(b"d", b'5', b""))
            .add(&sized(b"h", b'1', b"f"))
            .add(&sized(b"s", b'2', b"f"))
            .file("last", b"y"),
    );
    assert_eq!(paths(&tree), ["d", "f", "h", "last", "s"]);
}

#[test]
fn times_before_1970_and_large_ids_are_kept() {
    let tree = tree(
        TarBuilder::new()
            .pax(&[
                ("mtime", b"-86400.000000001"),
                ("uid", b"4294967294"),
                ("gid", b"65536"),
            ])
            .file("f", b""),
    );
    let facts = facts(&tree, "f");
    assert_eq!(facts.mtime, (-86_401, 999_999_999));
    assert_eq!((facts.uid, facts.gid), (4_294_967_294, 65_536));
}
