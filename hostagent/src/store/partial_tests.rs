//! Tests of blobs that are not all here yet.

use outboard::{BlobHash, Builder};

use super::*;

fn blob(bytes: usize) -> (BlobIdentity, Vec<u8>, Vec<u8>) {
    let content: Vec<u8> = (0..bytes).map(|n| (n / 61 + n % 251) as u8).collect();
    let outboard = tempfile::tempfile().unwrap();
    let mut builder = Builder::new(outboard.try_clone().unwrap());
    for span in content.chunks(SPAN_BYTES as usize) {
        builder.push(span).unwrap();
    }
    builder.finish().unwrap();
    let mut tree = vec![0; outboard.metadata().unwrap().len() as usize];
    outboard.read_exact_at(&mut tree, 0).unwrap();
    let identity = BlobIdentity {
        hash: BlobHash::of(&content),
        bytes: bytes as u64,
    };
    (identity, content, tree)
}

fn open(store: &Store, identity: BlobIdentity, tree: &[u8]) -> PartialBlob {
    try_open(store, identity, tree).unwrap()
}

fn try_open(store: &Store, identity: BlobIdentity, tree: &[u8]) -> Result<PartialBlob, StoreError> {
    store.partial(identity, |file| {
        file.write_all_at(tree, 0).unwrap();
        Ok(())
    })
}

#[test]
fn a_blob_is_filled_in_any_order_and_then_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(100_000);
    let partial = open(&store, identity, &tree);
    assert_eq!((partial.groups(), partial.missing()), (7, 7));
    assert_eq!(partial.next_missing(2..100, 3), Some((2, 3)));
    partial.write(5, &content[5 << 14..]).unwrap();
    partial.write(1, &content[1 << 14..2 << 14]).unwrap();
    assert_eq!(partial.next_missing(1..100, 100), Some((2, 3)));
    assert_eq!(partial.next_missing(5..7, 100), None);
    assert!(!store.save_partial(&partial).unwrap());
    drop(partial);

    // What was saved is known to the next one.
    let partial = open(&store, identity, b"not asked for");
    assert_eq!(partial.missing(), 4);
    let (data, _) = partial.files().unwrap();
    partial.write(0, &content[..5 << 14]).unwrap();
    assert!(store.save_partial(&partial).unwrap());
    let whole = store.blob(identity, || "it".to_owned()).unwrap();
    whole.read_all(|_| true).unwrap();
    assert!(store.partial_blobs().unwrap().is_empty());
    let mut bytes = vec![0; content.len()];
    data.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == content);
    // The slower of two that fill it.
    assert!(store.save_partial(&partial).unwrap());
}

#[test]
fn nothing_wrong_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(100_000);
    let partial = open(&store, identity, &tree);
    let mut wrong = content[..1 << 15].to_vec();
    wrong[20_000] ^= 1;
    assert!(partial.write(0, &wrong).unwrap_err().is_corruption());
    assert!(
        partial
            .write(1, &content[..1 << 14])
            .unwrap_err()
            .is_corruption()
    );
    assert!(
        partial
            .write(0, &content[..100])
            .unwrap_err()
            .is_corruption()
    );
    partial.write(7, &content[..1 << 14]).unwrap_err();
    assert_eq!(partial.missing(), 7);
    let (data, _) = partial.files().unwrap();
    let mut bytes = vec![1; 1 << 14];
    data.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn a_wrong_hash_tree_verifies_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, mut tree) = blob(100_000);
    tree[10] ^= 1;
    assert!(try_open(&store, identity, &tree).unwrap_err().is_damage());
    try_open(&store, blob(200_000).0, &[0; 64]).unwrap_err();
    assert!(store.partial_blobs().unwrap().is_empty());

    // One that goes wrong later is dropped, with all that it would verify.
    tree[10] ^= 1;
    let partial = open(&store, identity, &tree);
    let place = store.partial_directory(identity).join(OUTBOARD);
    tree[10] ^= 1;
    std::fs::write(place, &tree).unwrap();
    assert!(
        partial
            .write(0, &content[..1 << 14])
            .unwrap_err()
            .is_corruption()
    );
    assert!(store.mend_partial(&partial).unwrap());
    assert!(store.partial_blobs().unwrap().is_empty());
}

#[test]
fn what_has_gone_wrong_is_missing_again_and_only_that() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(100_000);
    let partial = open(&store, identity, &tree);
    partial.write(0, &content[..4 << 14]).unwrap();
    assert!(!store.mend_partial(&partial).unwrap());
    partial.data.write_all_at(&[7], (2 << 14) + 5).unwrap();
    assert!(store.mend_partial(&partial).unwrap());
    assert_eq!(partial.next_missing(0..7, 7), Some((2, 1)));
    drop(partial);
    let partial = open(&store, identity, b"not asked for");
    assert_eq!(partial.missing(), 4);
    partial.write(2, &content[2 << 14..]).unwrap();
    assert!(store.save_partial(&partial).unwrap());
}

#[test]
fn a_blob_that_was_begun_with_another_length_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(100_000);
    let place = store.partial_directory(identity);
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join(DATA), b"short").unwrap();
    std::fs::write(place.join(OUTBOARD), b"").unwrap();
    let partial = open(&store, identity, &tree);
    partial.write(0, &content).unwrap();
    assert!(store.save_partial(&partial).unwrap());
}

/// What becomes of a blob when another process begins it anew.
fn begun_anew(store: &Store, identity: BlobIdentity, tree: &[u8]) -> PartialBlob {
    let place = store.partial_directory(identity);
    std::fs::rename(&place, store.root().join("elsewhere")).unwrap();
    open(store, identity, tree)
}

#[test]
fn what_is_known_of_a_blob_is_not_saved_beside_one_that_was_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(100_000);
    let first = open(&store, identity, &tree);
    first.write(0, &content[..2 << 14]).unwrap();
    let second = begun_anew(&store, identity, &tree);
    second.write(6, &content[6 << 14..]).unwrap();
    assert!(!store.save_partial(&second).unwrap());
    assert!(!store.save_partial(&first).unwrap());
    let known = open(&store, identity, b"not asked for");
    assert_eq!(known.missing(), 6);
    assert_eq!(known.check().unwrap(), 0);

    // Whole, it is whole elsewhere: what is here is not taken for it.
    first.write(0, &content).unwrap();
    assert!(!store.save_partial(&first).unwrap());
    assert!(!store.blob_directory(identity.hash).exists());
    assert_eq!(open(&store, identity, b"not asked for").missing(), 6);
    second.write(0, &content).unwrap();
    assert!(store.save_partial(&second).unwrap());
    let whole = store.blob(identity, || "it".to_owned()).unwrap();
    whole.read_all(|_| true).unwrap();
    // Who was slower is told that it is there.
    assert!(store.save_partial(&first).unwrap());
}

#[test]
fn a_wrong_hash_tree_takes_nothing_away_that_was_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, mut tree) = blob(100_000);
    let first = open(&store, identity, &tree);
    let place = store.partial_directory(identity).join(OUTBOARD);
    let right = tree.clone();
    tree[10] ^= 1;
    std::fs::write(place, &tree).unwrap();
    let second = begun_anew(&store, identity, &right);
    second.write(0, &content[..1 << 14]).unwrap();
    store.save_partial(&second).unwrap();
    assert!(store.mend_partial(&first).unwrap());
    assert_eq!(open(&store, identity, b"not asked for").missing(), 6);
}

#[test]
fn a_length_that_the_hash_tree_does_not_have_displaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(100_000);
    let partial = open(&store, identity, &tree);
    partial.write(0, &content[..4 << 14]).unwrap();
    store.save_partial(&partial).unwrap();
    let longer = BlobIdentity {
        bytes: identity.bytes + GROUP_BYTES,
        ..identity
    };
    let longer_tree = [&tree[..], &[0; 64]].concat();
    let refused = try_open(&store, longer, &longer_tree).unwrap_err();
    assert!(refused.is_damage(), "{refused}");
    assert_eq!(open(&store, identity, b"not asked for").missing(), 3);
}

#[test]
fn a_length_that_only_the_last_group_tells_is_filled_elsewhere_and_never_whole() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    for (bytes, difference) in [(100_000, 1_i64), (100_000, -1), (9_000, -4_000), (9_000, 7)] {
        let (identity, content, tree) = blob(bytes);
        let partial = open(&store, identity, &tree);
        let half = (partial.groups() / 2 * GROUP_BYTES) as usize;
        if half > 0 {
            partial.write(0, &content[..half]).unwrap();
        }
        store.save_partial(&partial).unwrap();
        let lie = BlobIdentity {
            bytes: identity.bytes.checked_add_signed(difference).unwrap(),
            ..identity
        };
        let other = open(&store, lie, &tree);
        let last = other.groups() - 1;
        let mut end = content[(last * GROUP_BYTES) as usize..].to_vec();
        end.resize((lie.bytes - last * GROUP_BYTES) as usize, 0);
        other.write(last, &end).unwrap_err();
        assert!(!store.save_partial(&other).unwrap());
        // The other one goes on.
        assert_eq!(
            open(&store, identity, b"not asked for").missing(),
            partial.missing()
        );
        let first = half as u64 / GROUP_BYTES;
        partial.write(first, &content[half..]).unwrap();
        assert!(store.save_partial(&partial).unwrap());
        assert!(!store.quarantine_if_corrupt(identity).unwrap());
        store.quarantine(identity.hash).unwrap();
    }
}

#[test]
fn what_stands_in_the_place_of_a_blob_and_is_none_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(50_000);
    let partial = open(&store, identity, &tree);
    let place = store.blob_directory(identity.hash);
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join(OUTBOARD), &tree).unwrap();
    assert!(!store.save_partial(&partial).unwrap());
    partial.write(0, &content).unwrap();
    assert!(store.save_partial(&partial).unwrap());
    assert!(!store.quarantine_if_corrupt(identity).unwrap());
}

#[test]
fn of_many_that_fill_drop_and_begin_a_blob_none_leaves_a_map_of_other_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let (identity, content, tree) = blob(200_000);
    Store::open(directory.path()).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4_u64 {
            let (root, content, tree) = (directory.path(), &content, &tree);
            scope.spawn(move || {
                let store = Store::open(root).unwrap();
                for round in 0..40 {
                    let partial = open(&store, identity, tree);
                    assert_eq!(partial.check().unwrap(), 0);
                    let first = (seed * 5 + round * 3) % (partial.groups() - 1);
                    let bytes = &content[first as usize * GROUP_BYTES as usize..];
                    let most = (round as usize % 3 + 1) * GROUP_BYTES as usize;
                    partial
                        .write(first, &bytes[..most.min(bytes.len())])
                        .unwrap();
                    if store.save_partial(&partial).unwrap() {
                        let whole = store.blob(identity, || "it".to_owned());
                        // Or it is taken away by another already.
                        if let Ok(whole) = whole {
                            whole.read_all(|_| true).unwrap();
                        }
                        // One of those who see it there takes it away again.
                        let elsewhere = store.root().join(format!("whole-{seed}-{round}"));
                        let _ = std::fs::rename(store.blob_directory(identity.hash), elsewhere);
                    }
                    if (seed + round) % 7 == 0 {
                        store.drop_partial(identity, &partial.directory).unwrap();
                    }
                }
            });
        }
    });
    let store = Store::open(directory.path()).unwrap();
    for partial in store.partial_blobs().unwrap() {
        assert_eq!(partial.check().unwrap(), 0);
    }
}

#[test]
fn a_blob_of_nothing_is_none_whatever_its_hash_says() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (identity, content, tree) = blob(9_000);
    let nothing = BlobIdentity {
        bytes: 0,
        ..identity
    };
    let partial = open(&store, nothing, b"");
    partial.write(0, b"").unwrap_err();
    assert!(!store.save_partial(&partial).unwrap());
    // Nor is one that has lost all it had.
    let whole = open(&store, identity, &tree);
    whole.write(0, &content).unwrap();
    assert!(store.save_partial(&whole).unwrap());
    let data = store.blob_directory(identity.hash).join(DATA);
    std::fs::write(data, b"").unwrap();
    assert!(store.quarantine_if_corrupt(nothing).unwrap());
}
