//! A skeleton and a blob give back the tar stream that they were made of. Each
//! stream that another test of this crate converts is put together again too:
//! `support::tools::convert` sees to it, also to what GNU tar writes of random trees.

mod support;

use std::fs;
use std::io::{self, Cursor, Read};

use erofs::image::ReadAt;
use erofs::layer::{self, LayerError};
use erofs::tar::{Recorder, TarError};
use erofs::{BLOCK_BYTES, Limits, skeleton};
use proptest::prelude::*;
use support::tar_builder::TarBuilder;
use support::{random_stream, tools};

/// What was told of a stream.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Literal(u64),
    Content(u64, u64),
}

#[derive(Default)]
struct Tale(Vec<Told>);

impl Recorder for Tale {
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.0.last_mut() {
            Some(Told::Literal(length)) => *length += bytes.len() as u64,
            _ => self.0.push(Told::Literal(bytes.len() as u64)),
        }
        Ok(())
    }

    fn content(&mut self, blob_offset: u64, length: u64) -> io::Result<()> {
        self.0.push(Told::Content(blob_offset, length));
        Ok(())
    }
}

fn told(tar: &[u8]) -> Vec<Told> {
    let mut tale = Tale::default();
    let out = Cursor::new(Vec::new());
    layer::write_recorded(tar, out, &Limits::default(), &mut tale).unwrap();
    tale.0
}

/// A reader that gives as many bytes at a time as a list says, over and over.
struct InPieces<'a>(&'a [u8], std::iter::Cycle<std::slice::Iter<'a, usize>>);

impl Read for InPieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.1.next().copied().unwrap_or(1).min(into.len());
        self.0.read(&mut into[..count])
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(150)
    })]

    #[test]
    fn any_stream_is_assembled_as_it_was(
        tar in random_stream::tar(),
        pieces in prop::collection::vec(1..200_000_usize, 1..8),
    ) {
        // Assembles too.
        let (blob, _) = tools::convert(&tar).unwrap();
        // Neither how the stream came nor how it is read matters.
        let came = InPieces(&tar, pieces.iter().cycle());
        let (_, skeleton) = tools::convert_recorded(came, &Limits::default()).unwrap();
        let bytes = InPieces(&skeleton, pieces.iter().cycle());
        let mut assembler =
            skeleton::Assembler::new(bytes, &blob, blob.len() as u64).unwrap();
        let mut assembled = Vec::new();
        for length in pieces.iter().cycle() {
            let mut part = vec![0; *length];
            let count = assembler.read(&mut part).unwrap();
            assembled.extend_from_slice(&part[..count]);
            if count == 0 {
                break;
            }
        }
        prop_assert!(assembled == tar);
        // All but the content, and little more for each segment.
        let literal: u64 = told(&tar).iter().map(|told| match told {
            Told::Literal(length) => *length,
            Told::Content(..) => 0,
        }).sum();
        let segments = told(&tar).len() as u64;
        prop_assert!(skeleton.len() as u64 <= literal + 30 + 8 * segments);
    }

    #[test]
    fn content_told_of_is_past_the_first_block_and_in_order(tar in random_stream::tar()) {
        let (blob, _) = tools::convert(&tar).unwrap();
        let mut end = BLOCK_BYTES;
        let mut position = 0;
        for told in told(&tar) {
            match told {
                Told::Literal(length) => position += length as usize,
                Told::Content(offset, length) => {
                    prop_assert!(end <= offset);
                    end = offset + length;
                    let range = offset as usize..end as usize;
                    prop_assert!(blob[range] == tar[position..][..length as usize]);
                    position += length as usize;
                }
            }
        }
        prop_assert_eq!(position, tar.len());
    }
}

#[test]
fn the_old_formats_of_gnu_tar_are_assembled_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("made/d")).unwrap();
    fs::write(at("made/d/file"), vec![7; 100_001]).unwrap();
    fs::hard_link(at("made/d/file"), at("made/link")).unwrap();
    for format in ["v7", "oldgnu", "ustar", "gnu", "posix"] {
        let archive = at("layer.tar");
        let text = [&format!("--format={format}"), "--create", "--file"];
        let paths = [archive.as_os_str(), "--directory".as_ref()];
        let made = at("made");
        let arguments = text.map(AsRef::as_ref).into_iter().chain(paths);
        tools::run("tar", arguments.chain([made.as_os_str(), ".".as_ref()]));
        tools::convert(&fs::read(archive).unwrap()).unwrap();
    }
}

#[test]
fn the_content_of_what_is_no_file_is_told_as_it_is() {
    let tar = TarBuilder::new()
        .file(".wh.gone", &[1; 1000])
        .file("directory/", &[2; 1000])
        .file("kept", &[3; 1000])
        .finish();
    // Three headers, two contents padded to 1024; the content; its padding and the end.
    let expected = [
        Told::Literal(3 * 512 + 2 * 1024),
        Told::Content(4096, 1000),
        Told::Literal(24 + 1024),
    ];
    assert_eq!(told(&tar), expected);
}

#[test]
fn replaced_files_are_told_of_where_they_still_are() {
    let tar = TarBuilder::new()
        .file("a", b"first")
        .file("a", b"second")
        .finish();
    let contents: Vec<_> = told(&tar)
        .into_iter()
        .filter(|told| matches!(told, Told::Content(..)))
        .collect();
    assert_eq!(contents, [Told::Content(4096, 5), Told::Content(8192, 6)]);
}

#[test]
fn a_recorder_that_fails_ends_the_conversion() {
    struct Full(u64);
    impl Recorder for Full {
        fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.content(0, bytes.len() as u64)
        }
        fn content(&mut self, _: u64, length: u64) -> io::Result<()> {
            self.0 = self.0.saturating_sub(length);
            match self.0 {
                0 => Err(io::ErrorKind::StorageFull.into()),
                _ => Ok(()),
            }
        }
    }
    let tar = TarBuilder::new()
        .pax(&[("comment", b"x")])
        .file("a", &[1; 5000])
        .file(".wh.b", &[1; 5000])
        .finish();
    for room in (1..=tar.len() as u64).step_by(100) {
        let out = Cursor::new(Vec::new());
        let result = layer::write_recorded(&tar[..], out, &Limits::default(), Full(room));
        let Err(LayerError::Tar(TarError::Record { source, .. })) = result else {
            panic!("{room}: {result:?}");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn a_large_file_takes_a_few_bytes_and_is_read_in_the_pieces_asked_for() {
    /// A blob of ones that nobody asks for more than a piece of.
    struct Ones;
    const PIECE: usize = 64 << 10;
    impl ReadAt for Ones {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            assert!(buffer.len() <= PIECE);
            assert!(offset >= BLOCK_BYTES);
            buffer.fill(1);
            Ok(())
        }
    }
    let blob_bytes = 8 << 40;
    let mut writer = skeleton::Writer::new(Vec::new());
    for part in 0..1000 {
        writer
            .content(BLOCK_BYTES + part * (1 << 30), 1 << 30)
            .unwrap();
    }
    let skeleton = writer.finish().unwrap();
    assert!(skeleton.len() < 40, "{} bytes", skeleton.len());
    let mut assembler = skeleton::Assembler::new(&skeleton[..], Ones, blob_bytes).unwrap();
    let mut piece = vec![0; PIECE];
    for _ in 0..2000 {
        assert_eq!(assembler.read(&mut piece).unwrap(), PIECE);
    }
    assert!(piece.iter().all(|byte| *byte == 1));
}
