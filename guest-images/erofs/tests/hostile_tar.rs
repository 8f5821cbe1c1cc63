//! Tar streams that lie, and what is said about them.

mod support;

use std::error::Error;

use erofs::layer::LayerError;
use erofs::tar::{Inside, PaxProblem, SparseProblem, TarError};
use erofs::{Limits, PathProblem, XattrProblem};
use proptest::prelude::*;
use support::tar_builder::{self, Header, TarBuilder};
use support::{snapshot, tools};

/// The error of a stream, and its whole text as a user would see it.
fn refused(tar: &[u8]) -> (LayerError, String) {
    match tools::convert(tar) {
        Ok(_) => panic!("the stream was accepted"),
        Err(error) => {
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(source) = next {
                text = format!("{text}: {source}");
                next = source.source();
            }
            (error, text)
        }
    }
}

macro_rules! assert_refused {
    ($tar:expr, $pattern:pat $(if $guard:expr)?, $text:expr) => {{
        let (error, text) = refused(&$tar);
        assert!(matches!(error, $pattern $(if $guard)?), "{error:?}");
        assert!(text.contains($text), "{text}");
    }};
}

#[test]
fn a_path_that_leads_out_of_the_layer_is_refused_by_name() {
    for path in ["../etc/passwd", "a/../../b", "..", "a/.."] {
        let tar = TarBuilder::new().file(path, b"x").finish();
        assert_refused!(
            tar,
            LayerError::Path {
                source: PathProblem::ParentDirectory,
                ..
            },
            &format!("\"{path}\"")
        );
    }
    let tar = TarBuilder::new()
        .file("a", b"x")
        .hard_link("b", "../a")
        .finish();
    assert_refused!(
        tar,
        LayerError::LinkPath {
            source: PathProblem::ParentDirectory,
            ..
        },
        "hard link \"b\""
    );
}

#[test]
fn an_absolute_path_stays_below_the_root() {
    let tar = TarBuilder::new()
        .file("/etc/shadow", b"x")
        .hard_link("//copy", "/etc/shadow")
        .finish();
    let blob = tools::blob_of(&tar);
    let tree = snapshot::of_image(&tools::open(&blob));
    let paths: Vec<_> = tree.keys().map(|path| path.as_slice()).collect();
    assert_eq!(paths, [&b""[..], b"copy", b"etc", b"etc/shadow"]);
}

#[test]
fn a_path_through_a_symbolic_link_is_refused_and_not_followed() {
    for target in ["/etc", "real", "."] {
        let tar = TarBuilder::new()
            .directory("real", 0o755)
            .symlink("link", target)
            .file("link/file", b"x")
            .finish();
        assert_refused!(
            tar,
            LayerError::NotADirectory { .. },
            "\"link/file\" goes through \"link\""
        );
    }
}

#[test]
fn a_path_through_a_file_or_a_device_is_refused() {
    let through_file = TarBuilder::new().file("f", b"").file("f/g", b"").finish();
    assert_refused!(through_file, LayerError::NotADirectory { .. }, "\"f\"");
    let through_device = TarBuilder::new()
        .char_device("d", 1, 3)
        .directory("d/e", 0o755)
        .finish();
    assert_refused!(through_device, LayerError::NotADirectory { .. }, "\"d\"");
}

#[test]
fn a_hard_link_needs_an_earlier_file_of_the_layer() {
    let nothing = TarBuilder::new().hard_link("a", "b").finish();
    assert_refused!(nothing, LayerError::LinkTarget { .. }, "\"a\" names \"b\"");
    let itself = TarBuilder::new().hard_link("a", "a").finish();
    assert_refused!(itself, LayerError::LinkTarget { .. }, "\"a\"");
    let later = TarBuilder::new()
        .hard_link("a", "b")
        .file("b", b"")
        .finish();
    assert_refused!(later, LayerError::LinkTarget { .. }, "\"b\"");
    let directory = TarBuilder::new()
        .directory("d", 0o755)
        .hard_link("a", "d")
        .finish();
    assert_refused!(directory, LayerError::LinkTarget { .. }, "\"d\"");
    let through_symlink = TarBuilder::new()
        .directory("d", 0o755)
        .file("d/f", b"")
        .symlink("s", "d")
        .hard_link("a", "s/f")
        .finish();
    assert_refused!(through_symlink, LayerError::LinkTarget { .. }, "\"s/f\"");
    let what_it_replaces = TarBuilder::new()
        .directory("d", 0o755)
        .file("d/f", b"")
        .hard_link("d", "d/f")
        .finish();
    assert_refused!(what_it_replaces, LayerError::LinkTarget { .. }, "\"d/f\"");
}

#[test]
fn the_root_stays_a_directory() {
    let tar = TarBuilder::new().symlink("./", "/etc").finish();
    assert_refused!(tar, LayerError::Root { .. }, "\"./\"");
    let tar = TarBuilder::new().hard_link("/", "a").finish();
    assert_refused!(tar, LayerError::Root { .. }, "\"/\"");
}

#[test]
fn whiteouts_that_make_no_sense_are_refused() {
    for path in [".wh.", "a/.wh..", "a/.wh...", ".wh.a/b"] {
        let tar = TarBuilder::new().file(path, b"").finish();
        assert_refused!(tar, LayerError::Whiteout { .. }, path);
    }
}

#[test]
fn devices_that_linux_cannot_have_are_refused() {
    let tar = TarBuilder::new().char_device("d", 4096, 0).finish();
    assert_refused!(tar, LayerError::Device { major: 4096, .. }, "4096:0");
    let tar = TarBuilder::new().char_device("d", 0, 1 << 20).finish();
    assert_refused!(tar, LayerError::Device { .. }, "0:1048576");
}

#[test]
fn symbolic_links_that_linux_cannot_have_are_refused() {
    for target in [&b""[..], &[b'x'; 4096]] {
        let tar = TarBuilder::new()
            .add(&Header {
                path: b"s",
                type_flag: b'2',
                link: target,
                ..Header::default()
            })
            .finish();
        assert_refused!(tar, LayerError::Symlink { .. }, "\"s\"");
    }
    let tar = TarBuilder::new()
        .pax(&[("linkpath", b"a\0b")])
        .symlink("s", "t")
        .finish();
    assert_refused!(tar, LayerError::Symlink { .. }, "\"s\"");
}

#[test]
fn names_beyond_linux_are_refused_and_the_longest_accepted() {
    let longest = "n".repeat(255);
    let fits = TarBuilder::new().file(&longest, b"x").finish();
    let blob = tools::blob_of(&fits);
    assert!(
        tools::open(&blob)
            .lookup(longest.as_bytes())
            .unwrap()
            .is_some()
    );
    let tar = TarBuilder::new().file(&"n".repeat(256), b"x").finish();
    assert_refused!(
        tar,
        LayerError::Path {
            source: PathProblem::NameTooLong,
            ..
        },
        "255 bytes"
    );
    let tar = TarBuilder::new().file(&"n/".repeat(2049), b"").finish();
    assert_refused!(
        tar,
        LayerError::Path {
            source: PathProblem::PathTooLong,
            ..
        },
        "4096 bytes"
    );
    let tar = TarBuilder::new()
        .pax(&[("path", b"a\0b")])
        .file("c", b"")
        .finish();
    assert_refused!(
        tar,
        LayerError::Path {
            source: PathProblem::Nul,
            ..
        },
        "NUL"
    );
}

#[test]
fn what_would_drive_a_terminal_does_not_reach_it() {
    let tar = TarBuilder::new().file("../\x1b]0;evil\x07", b"").finish();
    let (_, text) = refused(&tar);
    assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
}

#[test]
fn extended_attributes_beyond_the_format_are_refused() {
    let tar = TarBuilder::new()
        .pax(&[("SCHILY.xattr.user.big", &[1; 65_536])])
        .file("f", b"")
        .finish();
    assert_refused!(
        tar,
        LayerError::Xattr {
            source: XattrProblem::Value,
            ..
        },
        "user.big"
    );
    let value = vec![1; 60_000];
    let many: Vec<_> = (0..5).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<_> = many.iter().map(|key| (key.as_str(), &value[..])).collect();
    let tar = TarBuilder::new().pax(&records).file("f", b"").finish();
    assert_refused!(
        tar,
        LayerError::Xattr {
            source: XattrProblem::Total,
            ..
        },
        "\"f\""
    );
}

#[test]
fn a_truncated_layer_is_refused_wherever_it_is_cut() {
    let tar = TarBuilder::new()
        .directory("d", 0o755)
        .file("d/f", &[7; 5000])
        .pax(&[("SCHILY.xattr.user.a", b"b")])
        .file("g", b"last")
        .unfinished();
    // A header and its data, or less: those streams lack only padding and the
    // marks of the end, which some tars leave out.
    let complete = |length| matches!(length, 0 | 512 | 6024..=6144 | 7684..=8192);
    for length in 0..tar.len() {
        match tools::convert(&tar[..length]) {
            Ok(_) => assert!(complete(length), "cut at {length}"),
            Err(LayerError::Tar(TarError::Truncated { offset, .. })) => {
                assert_eq!(offset, length as u64);
                assert!(!complete(length), "cut at {length}");
            }
            Err(LayerError::Tar(TarError::DanglingExtendedHeader { .. })) => {
                assert!(!complete(length), "cut at {length}");
            }
            Err(other) => panic!("cut at {length}: {other:?}"),
        }
    }
    let (error, text) = refused(&tar[..2000]);
    let name = erofs::EntryName::from(&b"d/f"[..]);
    assert!(matches!(
        error,
        LayerError::Tar(TarError::Truncated { offset: 2000, inside: Inside::Content(entry) })
            if entry == name
    ));
    assert!(
        text.contains("truncated") && text.contains("\"d/f\""),
        "{text}"
    );
}

#[test]
fn a_stream_may_end_after_one_zero_block_or_with_padding() {
    let tar = TarBuilder::new().file("f", b"x").unfinished();
    let with = |zeros: usize| [tar.as_slice(), &vec![0; zeros]].concat();
    let blob = tools::blob_of(&tar);
    for zeros in [512, 1024, 10_240, 1024 + 3] {
        assert!(tools::blob_of(&with(zeros)) == blob, "{zeros} zeros");
    }
    // What follows the end is read, for the digest, and otherwise ignored.
    let trailing = [with(1024).as_slice(), b"anything"].concat();
    assert!(tools::blob_of(&trailing) == blob);
    let resumed = [with(512).as_slice(), &tar].concat();
    assert_refused!(
        resumed,
        LayerError::Tar(TarError::LoneZeroBlock { offset: 1536 }),
        "zero block"
    );
}

#[test]
fn what_is_no_tar_stream_is_refused() {
    for stream in [vec![b'x'; 1024], b"\x1f\x8b\x08".repeat(400)] {
        assert_refused!(
            stream,
            LayerError::Tar(TarError::Checksum { offset: 0 }),
            "no tar stream"
        );
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    let with_field = |at: usize, bytes: &[u8]| {
        let tar = TarBuilder::new().file("f", b"").finish();
        let mut block: [u8; 512] = tar[..512].try_into().unwrap();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        TarBuilder::new().raw_header(block).finish()
    };
    for (at, bytes, name) in [
        (100, &b"00009\0"[..], "mode"),
        (108, b"\xff\xff\xff\xff\xff\xff\xff\xff", "uid"),
        (108, b"\x80\0\0\0\xff\xff\xff\xff", "uid"),
        (116, b"\x80\0\0\x01\0\0\0\0", "gid"),
        (
            124,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            "size",
        ),
        (124, b"\x80\0\0\0\x80\0\0\0\0\0\0\0", "size"),
        (136, b"yesterday...", "mtime"),
    ] {
        let (error, text) = refused(&with_field(at, bytes));
        assert!(
            matches!(error, LayerError::Tar(TarError::Number { field, .. }) if field == name),
            "{text}"
        );
    }
}

#[test]
fn an_extended_header_that_announces_gigabytes_is_refused_unread() {
    for type_flag in [b'x', b'g', b'L', b'K'] {
        let tar = TarBuilder::new()
            .add(&Header {
                type_flag,
                size: Some(4 << 30),
                ..Header::default()
            })
            .finish();
        assert_refused!(
            tar,
            LayerError::Tar(TarError::ExtendedHeaderTooLong { .. }),
            "4294967296"
        );
    }
}

#[test]
fn extended_headers_do_not_pile_up_before_an_entry() {
    let value = vec![b'v'; 60_000];
    let mut tar = TarBuilder::new();
    for _ in 0..20 {
        tar = tar.pax(&[("SCHILY.xattr.user.a", &value)]);
    }
    assert_refused!(
        tar.file("f", b"").finish(),
        LayerError::Tar(TarError::ExtendedHeaderTooLong { .. }),
        "1048576 are accepted"
    );
}

#[test]
fn an_extended_header_without_an_entry_is_refused() {
    let tar = TarBuilder::new().pax(&[("path", b"a")]).finish();
    assert_refused!(
        tar,
        LayerError::Tar(TarError::DanglingExtendedHeader { offset: 1024 }),
        "describes no entry"
    );
}

#[test]
fn a_global_header_may_say_who_made_the_archive_but_not_what_files_are() {
    let harmless = tar_builder::pax_record(b"comment", b"a commit");
    let tar = TarBuilder::new()
        .extension(b'g', &harmless)
        .file("f", b"x")
        .finish();
    tools::blob_of(&tar);
    for key in ["path", "size", "GNU.sparse.name", "SCHILY.xattr.user.a"] {
        let tar = TarBuilder::new()
            .extension(b'g', &tar_builder::pax_record(key.as_bytes(), b"1"))
            .file("f", b"x")
            .finish();
        let (error, text) = refused(&tar);
        assert!(
            matches!(
                error,
                LayerError::Tar(TarError::Pax {
                    problem: PaxProblem::Global(_),
                    ..
                })
            ),
            "{text}"
        );
    }
}

#[test]
fn kinds_of_entries_that_no_layer_has_are_refused() {
    for type_flag in *b"DMNV?" {
        let tar = TarBuilder::new()
            .add(&Header {
                type_flag,
                ..Header::default()
            })
            .finish();
        assert_refused!(
            tar,
            LayerError::Tar(TarError::Unsupported { flag, .. }) if flag == char::from(type_flag),
            "\"file\""
        );
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &str, size: &str, stored: &[u8]| {
        TarBuilder::new()
            .pax(&[
                ("GNU.sparse.size", size.as_bytes()),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .file("s", stored)
            .finish()
    };
    tools::blob_of(&sparse("0,5,100,5", "200", b"helloworld"));
    for (map, size, problem) in [
        ("0,5,4,5", "200", SparseProblem::Order),
        ("100,5,0,5", "200", SparseProblem::Order),
        ("0,5,196,5", "200", SparseProblem::Order),
        ("0,5,18446744073709551615,5", "200", SparseProblem::Order),
        ("0,5,100,6", "200", SparseProblem::Sum),
        ("0,5", "200", SparseProblem::Sum),
        ("0,5,100", "200", SparseProblem::Malformed),
        ("0,5,100,5", "9223372036854775808", SparseProblem::Malformed),
    ] {
        assert_refused!(
            sparse(map, size, b"helloworld"),
            LayerError::Tar(TarError::Sparse { problem: found, .. }) if found == problem,
            "\"s\""
        );
    }
    // The form in which the map is part of the data.
    let in_data = |data: &[u8]| {
        TarBuilder::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", b"200"),
            ])
            .file("x", data)
            .finish()
    };
    let mut data = b"1\n100\n5\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"hello");
    tools::blob_of(&in_data(&data));
    for bad in [
        &b"1\n100\n5"[..],
        &[b'9'; 600],
        &[&b"9999999999\n"[..], &[b'1'; 600]].concat(),
        &[&b"1048577\n"[..], &b"0\n".repeat(300)].concat(),
        b"",
    ] {
        assert_refused!(
            in_data(bad),
            LayerError::Tar(TarError::Sparse { .. }),
            "\"s\""
        );
    }
}

#[test]
fn each_limit_is_kept() {
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    let tar = (0..100)
        .fold(TarBuilder::new(), |tar, n| {
            tar.file(&format!("{n}"), &[1; 5000])
        })
        .finish();
    tools::convert_within(
        &tar,
        &limits(|l| {
            l.max_tar_bytes = 100 * 5632 + 1024;
            l.max_entries = 100;
            l.max_blob_bytes = 210 * 4096;
        }),
    )
    .unwrap();
    let refused = |change| tools::convert_within(&tar, &limits(change)).unwrap_err();
    assert!(matches!(
        refused(|l| l.max_tar_bytes = 100 * 5632 + 1023),
        LayerError::Tar(TarError::TooLong { .. })
    ));
    assert!(matches!(
        refused(|l| l.max_entries = 99),
        LayerError::TooManyEntries { limit: 99 }
    ));
    assert!(matches!(
        refused(|l| l.max_metadata_bytes = 100),
        LayerError::TooMuchMetadata { limit: 100 }
    ));
    assert!(matches!(
        refused(|l| l.max_blob_bytes = 200 * 4096),
        LayerError::BlobTooLarge { .. }
    ));
}

#[test]
fn a_size_beyond_the_limit_is_refused_before_anything_is_written() {
    let tar = TarBuilder::new()
        .pax(&[("size", b"1000000000000")])
        .file("f", b"")
        .finish();
    assert_refused!(tar, LayerError::BlobTooLarge { .. }, "bytes allowed");
    for sparse in [false, true] {
        let mut records: Vec<(&str, &[u8])> = vec![("size", b"9223372036854775807")];
        if sparse {
            records = vec![
                ("GNU.sparse.realsize", b"9223372036854775807"),
                ("GNU.sparse.map", b""),
            ];
        }
        let tar = TarBuilder::new().pax(&records).file("f", b"").finish();
        assert_refused!(tar, LayerError::FileTooLarge { .. }, "16 TiB");
    }
    let tar = TarBuilder::new()
        .pax(&[("size", b"9223372036854775808")])
        .file("f", b"")
        .finish();
    assert_refused!(
        tar,
        LayerError::Tar(TarError::Pax {
            problem: PaxProblem::Value("size"),
            ..
        }),
        "\"size\""
    );
}

/// A stream with one of everything.
fn everything() -> TarBuilder {
    TarBuilder::new()
        .directory("./", 0o755)
        .directory("d", 0o1777)
        .file("d/f", &[3; 9000])
        .hard_link("d/g", "d/f")
        .symlink("s", "d/f")
        .char_device("c", 1, 3)
        .pax(&[
            ("SCHILY.xattr.user.x", b"\0y"),
            ("mtime", b"-1.5"),
            ("uid", b"70000"),
        ])
        .file("p", b"content")
        .pax(&[
            ("GNU.sparse.size", b"90000"),
            ("GNU.sparse.map", b"0,5,80000,5"),
        ])
        .file("sparse", b"helloworld")
        .file("d/.wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .extension(b'L', &[&[b'n'; 200][..], b"\0"].concat())
        .file("short", b"long")
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(2000)
    })]

    #[test]
    fn a_damaged_stream_gives_a_sound_blob_or_an_error(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        in_headers in any::<bool>(),
    ) {
        let builder = everything();
        let headers = builder.headers.clone();
        let mut tar = builder.finish();
        for (place, byte) in &damage {
            let at = if in_headers {
                headers[place.index(headers.len())] + usize::from(*byte).wrapping_mul(7) % 512
            } else {
                place.index(tar.len())
            };
            tar[at] = tar[at].wrapping_add(*byte);
        }
        // Or no damage would get past the checksums.
        for at in headers {
            let block: &mut [u8; 512] = (&mut tar[at..at + 512]).try_into().unwrap();
            tar_builder::fix_checksum(block);
        }
        if let Some(cut) = cut {
            tar.truncate(cut.index(tar.len()));
        }
        let limits = Limits {
            max_blob_bytes: 1 << 20,
            max_entries: 1000,
            ..Limits::default()
        };
        if let Ok((blob, _)) = tools::convert_within(&tar, &limits) {
            snapshot::of_image(&tools::open(&blob));
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = tools::convert(&bytes);
    }
}
