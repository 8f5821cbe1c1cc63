//! Skeletons that were cut, damaged or made up.

mod support;

use std::io::{self, Read};

use erofs::skeleton::{Assembler, PlaceProblem, SkeletonError};
use erofs::{BLOCK_BYTES, Limits};
use proptest::prelude::*;
use support::tar_builder::TarBuilder;
use support::tools;

/// A small layer with several segments of each kind: tar, blob, skeleton.
fn sample() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let tar = TarBuilder::new()
        .file("a", &[1; 5000])
        .pax(&[
            ("GNU.sparse.size", b"90000"),
            ("GNU.sparse.map", b"0,5,80000,5"),
        ])
        .file("sparse", b"helloworld")
        .directory("d", 0o755)
        .file("d/.wh.x", b"")
        .file("d/b", b"12")
        .finish();
    let (blob, skeleton) = tools::convert_recorded(&tar[..], &Limits::default()).unwrap();
    assert!(tools::assemble(&skeleton, &blob).unwrap() == tar);
    (tar, blob, skeleton)
}

/// The error in an [`io::Error`] of an assembler.
fn problem(error: &io::Error) -> &SkeletonError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.unwrap_or_else(|| panic!("{error:?}"))
}

const MAGIC: &[u8] = b"tarskel\x01";

/// A skeleton of these segments, with a checksum that is right.
fn made_up(segments: &[u8]) -> Vec<u8> {
    let bytes = [MAGIC, segments].concat();
    let checksum = crc32c::crc32c(&bytes);
    [&bytes[..], &checksum.to_le_bytes()].concat()
}

fn refused(skeleton: &[u8], blob: &[u8]) -> SkeletonError {
    let error = tools::assemble(skeleton, blob).unwrap_err();
    match error.into_inner().map(|inner| inner.downcast()) {
        Some(Ok(inner)) => *inner,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_skeleton_cut_anywhere_is_truncated() {
    let (tar, blob, skeleton) = sample();
    for length in 0..skeleton.len() {
        let mut assembled = Vec::new();
        let error = match Assembler::new(&skeleton[..length], &blob, blob.len() as u64) {
            Ok(mut assembler) => assembler.read_to_end(&mut assembled).unwrap_err(),
            Err(error) => error.into(),
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let SkeletonError::Truncated { offset } = problem(&error) else {
            panic!("{length}: {error:?}");
        };
        assert_eq!(*offset, length as u64);
        assert!(tar.starts_with(&assembled), "{length}");
    }
}

#[test]
fn no_bit_that_changed_goes_unnoticed() {
    let (_, blob, skeleton) = sample();
    for bit in 0..8 * skeleton.len() {
        let mut damaged = skeleton.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(tools::assemble(&damaged, &blob).is_err(), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn no_few_bytes_that_changed_go_unnoticed(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let (_, blob, skeleton) = sample();
        let mut damaged = skeleton.clone();
        for (index, byte) in changes {
            let at = index.index(damaged.len());
            damaged[at] = byte;
        }
        let result = tools::assemble(&damaged, &blob);
        prop_assert_eq!(result.is_ok(), damaged == skeleton);
    }

    #[test]
    fn made_up_segments_never_panic_nor_give_more_than_there_is(
        segments in prop::collection::vec(any::<u8>(), 0..60),
        small in prop::collection::vec(0..20_u8, 0..60),
    ) {
        let (_, blob, _) = sample();
        // `assemble` has the assertions.
        let _ = tools::assemble(&made_up(&segments), &blob);
        let _ = tools::assemble(&made_up(&small), &blob);
    }
}

#[test]
fn something_else_and_later_versions_are_told_apart() {
    assert!(matches!(
        refused(b"ustar\x0000 and more", b""),
        SkeletonError::Magic
    ));
    let error = refused(b"tarskel\x02whatever", b"");
    assert!(matches!(
        error,
        SkeletonError::Version {
            found: 2,
            supported: 1
        }
    ));
    assert!(
        error.to_string().contains("version 2; version 1 is known"),
        "{error}"
    );
}

#[test]
fn content_that_the_blob_has_not_is_refused() {
    let blob = vec![1; 3 * BLOCK_BYTES as usize];
    let place = |segments: &[u8]| match refused(&made_up(segments), &blob) {
        SkeletonError::Place { problem, .. } => problem,
        other => panic!("{other:?}"),
    };
    // One byte of content each, at a place of one number.
    assert_eq!(place(b"\x03\x01"), PlaceProblem::Backwards);
    assert_eq!(place(b"\x03\x80\x80\x01"), PlaceProblem::PastEnd);
    // Content of 2^63 - 1 bytes, and at the largest places of either sign.
    let largest = *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    let largest_even = *b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    assert_eq!(place(&[&largest[..], &[0]].concat()), PlaceProblem::PastEnd);
    assert_eq!(
        place(&[&[3], &largest[..]].concat()),
        PlaceProblem::Backwards
    );
    assert_eq!(
        place(&[&[3], &largest_even[..]].concat()),
        PlaceProblem::PastEnd
    );
    // The same byte twice, and the one after it.
    assert_eq!(place(&[3, 0, 3, 0xff, 0x3f]), PlaceProblem::Backwards);
    let sound = made_up(&[3, 0, 3, 0xfd, 0x3f, 0, 2]);
    assert_eq!(tools::assemble(&sound, &blob).unwrap(), [1, 1]);
}

#[test]
fn segments_that_mean_nothing_are_refused() {
    let blob = [0; 8192];
    let error = refused(&made_up(b"\x01\x00"), &blob);
    assert!(matches!(error, SkeletonError::EmptyContent { offset: 9 }));
    let error = refused(&made_up(b"\x82\x00x"), &blob);
    assert!(matches!(error, SkeletonError::Number { offset: 10 }));
    let error = refused(&made_up(&[0xff; 11]), &blob);
    assert!(matches!(error, SkeletonError::Number { offset: 18 }));
}

#[test]
fn a_literal_of_more_than_there_is_takes_no_memory() {
    let error = refused(
        &made_up(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01abc"),
        b"",
    );
    assert!(
        matches!(error, SkeletonError::Truncated { .. }),
        "{error:?}"
    );
}

#[test]
fn a_wrong_length_and_bytes_after_the_end_are_refused() {
    let error = refused(&made_up(b"\x06abc\x00\x04"), b"");
    let expected = (4, 3);
    let SkeletonError::TarLength {
        announced,
        assembled,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((announced, assembled), expected);
    let sound = made_up(b"\x06abc\x00\x03");
    assert_eq!(tools::assemble(&sound, b"").unwrap(), b"abc");
    let error = refused(&[&sound[..], b"\0"].concat(), b"");
    assert!(
        matches!(error, SkeletonError::TrailingBytes { offset: 18 }),
        "{error:?}"
    );
}

#[test]
fn a_blob_that_is_shorter_than_announced_is_an_error() {
    let (_, blob, skeleton) = sample();
    let announced = blob.len() as u64;
    let mut assembler = Assembler::new(&skeleton[..], &blob[..6000], announced).unwrap();
    let error = assembler.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(
        matches!(problem(&error), SkeletonError::Blob { .. }),
        "{error:?}"
    );
    let error = assembler.read(&mut [0]).unwrap_err();
    assert!(matches!(problem(&error), SkeletonError::FailedBefore));
}
