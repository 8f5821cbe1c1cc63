//! The tree as others have it, and what it catches.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use outboard::{
    BLOCK_BYTES, BlobHash, Builder, Built, GROUP_BYTES, Geometry, SPAN_BYTES, Tree, TreeError,
};
use proptest::prelude::*;

fn blob(bytes: usize) -> Vec<u8> {
    let mut state = bytes as u64 | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn temporary() -> File {
    // Nameless, in memory.
    let path = format!(
        "/dev/shm/outboard-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

fn build(blob: &[u8]) -> (Built, Vec<u8>) {
    let file = temporary();
    let mut builder = Builder::new(file.try_clone().unwrap());
    for span in blob.chunks(SPAN_BYTES as usize) {
        builder.push(span).unwrap();
    }
    let built = builder.finish().unwrap();
    (built, content(&file))
}

/// The same, and the values of its blocks.
fn build_with_blocks(blob: &[u8]) -> (Built, Vec<u8>, Vec<u8>) {
    let (outboard, blocks) = (temporary(), temporary());
    let builder = Builder::new(outboard.try_clone().unwrap());
    let builder = builder.with_blocks(blocks.try_clone().unwrap());
    let built = builder.build(blob).unwrap();
    (built, content(&outboard), content(&blocks))
}

/// The blocks of a blob that are not verified, and the groups whose blocks' values are not.
fn wrong_blocks(built: Built, blob: &[u8], outboard: &[u8], values: &[u8]) -> (Vec<u64>, Vec<u64>) {
    let tree = Tree::new(built.hash, built.blob_bytes);
    let geometry = tree.geometry();
    let (mut wrong, mut groups) = (Vec::new(), Vec::new());
    for group in 0..geometry.groups() {
        let span = tree.span(group * GROUP_BYTES / SPAN_BYTES, read_from(outboard));
        let place = geometry.block_values(group..group + 1);
        let values = &values[place.start as usize..place.end as usize];
        let Some(blocks) = span.unwrap().blocks(group, values) else {
            groups.push(group);
            continue;
        };
        let start = (group * GROUP_BYTES) as usize;
        let bytes = &blob[start..start + geometry.group_bytes(group) as usize];
        let numbered =
            (group * GROUP_BYTES / BLOCK_BYTES..).zip(bytes.chunks(BLOCK_BYTES as usize));
        for (block, bytes) in numbered {
            if !blocks.verify(block, bytes) {
                wrong.push(block);
            }
            assert!(!blocks.verify(block + 1, bytes) && !blocks.verify(block, &[]));
            assert!(!blocks.verify(block, &[7; BLOCK_BYTES as usize + 1]));
        }
    }
    (wrong, groups)
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn read_from(outboard: &[u8]) -> impl FnMut(&mut [u8], u64) -> io::Result<()> {
    |buffer, offset| {
        let found = outboard.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The groups of a blob that are not verified, and the spans whose nodes are not.
fn wrong(hash: BlobHash, length: u64, blob: &[u8], outboard: &[u8]) -> (Vec<u64>, Vec<u64>) {
    let tree = Tree::new(hash, length);
    let (mut groups, mut spans) = (Vec::new(), Vec::new());
    for index in 0..tree.geometry().spans() {
        let span = match tree.span(index, read_from(outboard)) {
            Ok(span) => span,
            Err(_) => {
                spans.push(index);
                continue;
            }
        };
        let end = (span.first_group() + SPAN_BYTES / GROUP_BYTES).min(tree.geometry().groups());
        for group in span.first_group()..end {
            let start = (group * GROUP_BYTES) as usize;
            let bytes = &blob[start..blob.len().min(start + GROUP_BYTES as usize)];
            if !span.verify(group, bytes) {
                groups.push(group);
            }
        }
    }
    (groups, spans)
}

#[test]
fn an_outboard_is_the_one_of_bao_tree_whatever_the_length() {
    let group = GROUP_BYTES as usize;
    let span = SPAN_BYTES as usize;
    let mut lengths = vec![0, 1, 1023, 1024, 1025];
    for whole in [
        group,
        2 * group,
        3 * group,
        17 * group,
        span,
        span + group,
        2 * span,
        3 * span,
        5 * span + 3 * group,
        8 * span,
        9 * span,
    ] {
        lengths.extend([whole - 1, whole, whole + 1]);
    }
    for length in lengths {
        let blob = blob(length);
        let (built, outboard) = build(&blob);
        let expected = PreOrderMemOutboard::create(&blob, BlockSize::from_chunk_log(4));
        assert_eq!(built.hash.as_bytes(), expected.root.as_bytes(), "{length}");
        assert_eq!(built.hash, BlobHash::of(&blob), "{length}");
        assert!(outboard == expected.data, "{length}");
        assert_eq!(
            outboard.len() as u64,
            Geometry::of(length as u64).outboard_bytes()
        );
        assert_eq!(
            wrong(built.hash, built.blob_bytes, &blob, &outboard),
            (vec![], vec![]),
            "{length}"
        );
    }
}

#[test]
fn a_span_that_is_replaced_counts_as_it_is_now() {
    let mut blob = blob(3 * SPAN_BYTES as usize + 5000);
    let file = temporary();
    let mut builder = Builder::new(file.try_clone().unwrap());
    for span in blob.chunks(SPAN_BYTES as usize) {
        builder.push(span).unwrap();
    }
    for index in [0, 3] {
        let start = index * SPAN_BYTES as usize;
        blob[start] ^= 1;
        let end = blob.len().min(start + SPAN_BYTES as usize);
        builder.replace(index as u64, &blob[start..end]).unwrap();
    }
    assert!(builder.replace(3, &[0; 5001]).is_err());
    assert!(builder.replace(4, &[0; 1]).is_err());
    let built = builder.finish().unwrap();
    assert_eq!(built.hash, BlobHash::of(&blob));
    assert_eq!(content(&file), build(&blob).1);
}

#[test]
fn nothing_can_follow_a_span_that_is_not_full() {
    let mut builder = Builder::new(temporary());
    builder.push(&[1; 1000]).unwrap();
    assert!(builder.push(&[1; 1000]).is_err());
    assert!(
        Builder::new(temporary())
            .push(&vec![0; SPAN_BYTES as usize + 1])
            .is_err()
    );
}

#[test]
fn a_span_that_is_not_there_and_an_outboard_cut_short_are_errors() {
    let blob = blob(2 * SPAN_BYTES as usize);
    let (built, outboard) = build(&blob);
    let tree = Tree::new(built.hash, built.blob_bytes);
    let missing = tree.span(2, read_from(&outboard));
    assert!(matches!(missing, Err(TreeError::NoSpan { span: 2, .. })));
    let cut = tree.span(1, read_from(&outboard[..outboard.len() - 1]));
    assert!(matches!(cut, Err(TreeError::Read { .. })));
}

#[test]
fn a_group_is_not_taken_for_another() {
    let blob = vec![7; 4 * GROUP_BYTES as usize];
    let (built, outboard) = build(&blob);
    let span = Tree::new(built.hash, built.blob_bytes)
        .span(0, read_from(&outboard))
        .unwrap();
    // The same bytes: only their place tells them apart.
    let bytes = &blob[..GROUP_BYTES as usize];
    assert!(span.verify(3, bytes));
    for group in [4, 63, 64, u64::MAX] {
        assert!(!span.verify(group, bytes), "{group}");
    }
    assert!(!span.verify(0, &blob[..2 * GROUP_BYTES as usize]));
    assert!(!span.verify(0, &[]));
}

#[test]
fn blocks_are_verified_alone_whatever_the_length() {
    let (block, group, span) = (
        BLOCK_BYTES as usize,
        GROUP_BYTES as usize,
        SPAN_BYTES as usize,
    );
    for length in [
        group + 1,
        group + block,
        group + block + 1,
        2 * group - 1,
        2 * group,
        7 * group + 3 * block - 5,
        span,
        span + 1,
        3 * span - block,
        3 * span + group,
    ] {
        let blob = blob(length);
        let (built, outboard, values) = build_with_blocks(&blob);
        assert_eq!((built, &outboard), (build(&blob).0, &build(&blob).1));
        let expected = Geometry::of(length as u64).block_values_bytes();
        assert_eq!(values.len() as u64, expected);
        let found = wrong_blocks(built, &blob, &outboard, &values);
        assert_eq!(found, (vec![], vec![]), "{length}");
    }
}

#[test]
fn a_blob_of_one_group_has_no_block_values() {
    for length in [0, 1, BLOCK_BYTES + 1, GROUP_BYTES] {
        let blob = blob(length as usize);
        let (built, outboard, values) = build_with_blocks(&blob);
        let tree = Tree::new(built.hash, built.blob_bytes);
        assert_eq!((outboard.len(), values.len()), (0, 0));
        assert_eq!(tree.geometry().block_values_bytes(), 0);
        assert!(
            tree.span(0, read_from(&[]))
                .unwrap()
                .blocks(0, &[])
                .is_none()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_changed_bit_of_the_blob_makes_its_group_wrong_and_no_other(
        length in 1..3 * SPAN_BYTES as usize,
        at in 0.0..1.0,
        bit in 0..8,
    ) {
        let mut blob = blob(length);
        let (built, outboard) = build(&blob);
        let at = ((length as f64) * at) as usize;
        blob[at] ^= 1_u8 << bit;
        let (groups, spans) = wrong(built.hash, built.blob_bytes, &blob, &outboard);
        prop_assert!(groups == [at as u64 / GROUP_BYTES], "{groups:?}");
        prop_assert!(spans.is_empty(), "{spans:?}");
    }

    #[test]
    fn a_changed_bit_of_the_outboard_verifies_nothing_that_is_below_it(
        length in GROUP_BYTES as usize + 1..6 * SPAN_BYTES as usize,
        at in 0.0..1.0,
        bit in 0..8,
    ) {
        let blob = blob(length);
        let (built, mut outboard) = build(&blob);
        let at = ((outboard.len() as f64) * at) as usize;
        outboard[at] ^= 1_u8 << bit;
        let (groups, spans) = wrong(built.hash, built.blob_bytes, &blob, &outboard);
        prop_assert!(groups.is_empty(), "{groups:?}");
        prop_assert!(!spans.is_empty());
        // The root alone is above all.
        prop_assert!(at >= 64 || spans.len() as u64 == Geometry::of(length as u64).spans());
    }

    #[test]
    fn a_changed_bit_makes_its_block_wrong_or_the_values_of_its_group(
        length in GROUP_BYTES as usize + 1..3 * SPAN_BYTES as usize,
        at in 0.0..1.0,
        bit in 0..8,
        in_values in any::<bool>(),
    ) {
        let mut blob = blob(length);
        let (built, outboard, mut values) = build_with_blocks(&blob);
        let changed = if in_values { &mut values } else { &mut blob };
        let at = ((changed.len() as f64) * at) as usize;
        changed[at] ^= 1_u8 << bit;
        let (blocks, groups) = wrong_blocks(built, &blob, &outboard, &values);
        match in_values {
            true => prop_assert_eq!((blocks, groups), (vec![], vec![at as u64 / 128])),
            false => prop_assert_eq!((blocks, groups), (vec![at as u64 / BLOCK_BYTES], vec![])),
        }
    }

    #[test]
    fn a_blob_of_another_length_has_another_tree(length in 1..SPAN_BYTES as usize, less in 1..1000_usize) {
        let blob = blob(length);
        let (built, outboard) = build(&blob);
        let other = length.saturating_sub(less);
        let (groups, spans) = wrong(built.hash, other as u64, &blob[..other], &outboard);
        prop_assert!(!groups.is_empty() || !spans.is_empty());
    }
}
