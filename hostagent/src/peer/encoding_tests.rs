use outboard::BlobHash;
use proptest::prelude::*;

use super::*;
use crate::store::Store;

/// A blob in a store, and its bytes.
fn stored(length: usize, seed: u8) -> (tempfile::TempDir, Blob, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..length)
        .map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ (i >> 14) as u8 ^ seed)
        .collect();
    let store = Store::open(directory.path()).unwrap();
    let identity = store.put_for_tests(&bytes);
    let blob = store.blob(identity, String::new).unwrap();
    (directory, blob, bytes)
}

fn pieces(geometry: Geometry, mut groups: Range<u64>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some(piece) = Piece::first_of(geometry, &groups) {
        groups.start = piece.groups.end;
        pieces.push(piece);
    }
    pieces
}

#[test]
fn an_empty_blob_is_one_piece_of_no_bytes() {
    let (_directory, blob, _) = stored(0, 0);
    let [piece] = &pieces(Geometry::of(0), 0..u64::MAX)[..] else {
        panic!("not one piece");
    };
    assert_eq!(piece.bytes(), 0);
    assert_eq!(piece.read(&blob).unwrap(), b"");
    let tree = Tree::new(blob.identity.hash, 0);
    assert!(piece.verify(&tree, b"").is_some());
    assert!(
        piece
            .verify(&Tree::new(BlobHash::of(b"x"), 0), b"")
            .is_none()
    );
    assert_eq!(Piece::first_of(Geometry::of(0), &(1..2)), None);
}

#[test]
fn a_blob_that_is_corrupt_is_not_encoded() {
    let (directory, blob, _) = stored(2_000_000, 1);
    let path = directory
        .path()
        .join("blobs")
        .join(blob.identity.hash.hex());
    let flip = |name: &str, at: u64| {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path.join(name))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    let whole = pieces(Geometry::of(2_000_000), 0..u64::MAX);
    flip("data", 1_100_000);
    assert!(whole[0].read(&blob).is_ok());
    assert!(whole[1].read(&blob).unwrap_err().is_corruption());
    flip("data", 1_100_000);
    assert!(whole[1].read(&blob).is_ok());
    flip("outboard", 100);
    assert!(whole[0].read(&blob).unwrap_err().is_corruption());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_range_arrives_as_it_was_sent(
        length in 0_usize..5_000_000,
        from in 0_u64..400,
        count in 0_u64..400,
    ) {
        let (_directory, blob, bytes) = stored(length, 7);
        let tree = Tree::new(blob.identity.hash, length as u64);
        let geometry = tree.geometry();
        let mut arrived = Vec::new();
        for piece in pieces(geometry, from..from + count) {
            let sent = piece.read(&blob).unwrap();
            prop_assert_eq!(sent.len(), piece.bytes());
            prop_assert!(sent.len() as u64 <= SPAN_BYTES + (5 << 10));
            let verified = piece.verify(&tree, &sent).unwrap();
            prop_assert_eq!(verified.offset, from * GROUP_BYTES + arrived.len() as u64);
            for (offset, range) in verified.nodes {
                let mut nodes = vec![0; range.len()];
                blob.outboard.read_exact_at(&mut nodes, offset).unwrap();
                prop_assert_eq!(&nodes[..], &sent[range]);
            }
            arrived.extend_from_slice(&sent[verified.data]);
        }
        let start = ((from * GROUP_BYTES) as usize).min(length);
        let end = (((from + count) * GROUP_BYTES) as usize).min(length);
        prop_assert!(arrived == bytes[start..end]);
    }

    #[test]
    fn a_piece_with_one_bit_wrong_is_refused(
        length in 1_usize..3_000_000,
        piece in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let (_directory, blob, _) = stored(length, 3);
        let tree = Tree::new(blob.identity.hash, length as u64);
        let pieces = pieces(tree.geometry(), 0..u64::MAX);
        let piece = piece.get(&pieces);
        let mut sent = piece.read(&blob).unwrap();
        let at = byte.index(sent.len());
        sent[at] ^= 1 << bit;
        prop_assert!(piece.verify(&tree, &sent).is_none());
    }

    #[test]
    fn a_piece_of_another_place_blob_or_length_is_refused(
        length in 3_000_000_usize..4_000_000,
        cut in 1_usize..20_000,
    ) {
        let (_directory, blob, _) = stored(length, 3);
        let tree = Tree::new(blob.identity.hash, length as u64);
        let pieces = pieces(tree.geometry(), 0..u64::MAX);
        let sent = pieces[0].read(&blob).unwrap();
        prop_assert!(pieces[1].verify(&tree, &sent).is_none());
        let other = Tree::new(BlobHash::of(b"other"), length as u64);
        prop_assert!(pieces[0].verify(&other, &sent).is_none());
        prop_assert!(pieces[0].verify(&tree, &sent[..sent.len() - cut]).is_none());
        let longer = [&sent[..], &sent[..cut]].concat();
        prop_assert!(pieces[0].verify(&tree, &longer).is_none());
        // Groups in another order.
        let mut swapped = sent.clone();
        let at = pieces[0].node_bytes;
        swapped[at..at + 2 * GROUP_BYTES as usize].rotate_left(GROUP_BYTES as usize);
        prop_assert!(pieces[0].verify(&tree, &swapped).is_none());
    }

    #[test]
    fn a_range_that_no_blob_has_is_no_piece(
        length in any::<u64>(), from in any::<u64>(), to in any::<u64>(),
    ) {
        let geometry = Geometry::of(length);
        if let Some(piece) = Piece::first_of(geometry, &(from..to)) {
            prop_assert!(piece.groups.start == from && piece.groups.end <= to);
            prop_assert!(piece.groups.end <= geometry.groups());
            prop_assert!(piece.bytes() as u64 <= SPAN_BYTES + (8 << 10));
        }
    }
}
