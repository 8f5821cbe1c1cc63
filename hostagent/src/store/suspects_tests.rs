//! Tests of looking at blobs that are said to be corrupt.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use outboard::SPAN_BYTES;

use super::super::blob::BlobWriter;
use super::super::durable::Unsynced;
use super::*;

const SPANS: u64 = 6;

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    (directory, store)
}

/// A blob of a disk with this many spans and a little more.
fn made(store: &Store, seed: u8, spans: u64) -> BlobIdentity {
    let staging = store.scratch().unwrap();
    let directory = staging.path().join("blob");
    std::fs::create_dir(&directory).unwrap();
    let mut blob = BlobWriter::for_disk(&directory).unwrap();
    for span in 0..spans {
        let byte = (span as u8).wrapping_mul(31) ^ seed;
        blob.write_all(&vec![byte; SPAN_BYTES as usize]).unwrap();
    }
    blob.write_all(&[seed; 5000]).unwrap();
    let identity = blob.finish(&mut Unsynced::default()).unwrap();
    store.publish_blob(&directory, identity).unwrap();
    identity
}

/// Changes a bit of one of its files.
fn flip(store: &Store, identity: BlobIdentity, name: &str, offset: u64) {
    let path = store.blob_directory(identity.hash).join(name);
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

fn is_quarantined(store: &Store, identity: BlobIdentity) -> bool {
    let kept = store.quarantined().join(identity.hash.hex()).exists();
    assert_ne!(kept, store.blob_directory(identity.hash).exists());
    kept
}

fn suspect(identity: BlobIdentity, span: Option<u64>) -> Suspect {
    Suspect {
        identity,
        span,
        partial: None,
    }
}

/// What is told of these, in the order in which it is, by the time all are looked at.
fn looked_at(store: &Store, suspects: Vec<Suspect>) -> Vec<(BlobHash, String)> {
    let (queue, queued) = channel();
    for suspect in suspects {
        queue.send(suspect).unwrap();
    }
    drop(queue);
    let mut told = Vec::new();
    look_at_all(store, &queued, &AtomicBool::new(false), |hash, verdict| {
        told.push((hash, format!("{verdict:?}")));
    });
    told
}

#[test]
fn of_a_blob_only_the_span_is_read_that_is_named() {
    let (_directory, store) = store();
    let blob = made(&store, 1, SPANS);
    flip(&store, blob, "data", 4 * SPAN_BYTES + 70_000);
    for span in [0, 1, 2, 3, 5, SPANS] {
        assert!(!store.quarantine_if_span_corrupt(blob, span).unwrap());
    }
    assert!(!is_quarantined(&store, blob));
    assert!(store.quarantine_if_span_corrupt(blob, 4).unwrap());
    assert!(is_quarantined(&store, blob));
}

#[test]
fn what_verifies_a_span_is_looked_at_like_the_span() {
    let (_directory, store) = store();
    for (seed, name, offset) in [
        // The values of the blocks of span 2 begin at 2/128 of 1 MiB.
        (1, "blocks", (SPAN_BYTES >> 7) * 2 + 9),
        // All spans are verified by the root.
        (2, "outboard", 40),
    ] {
        let blob = made(&store, seed, SPANS);
        flip(&store, blob, name, offset);
        let told = looked_at(&store, vec![suspect(blob, Some(2))]);
        assert_eq!(told, [(blob.hash, "Quarantined".to_owned())], "{name}");
        assert!(is_quarantined(&store, blob));
    }
}

#[test]
fn what_is_named_is_looked_at_before_anything_is_read_to_its_end() {
    let (_directory, store) = store();
    let [whole, unnamed, named, no_span] = [1, 2, 3, 4].map(|seed| made(&store, seed, SPANS));
    for blob in [unnamed, named, no_span] {
        flip(&store, blob, "data", 4 * SPAN_BYTES);
    }
    let told = looked_at(
        &store,
        vec![
            suspect(whole, Some(4)),
            suspect(unnamed, None),
            suspect(no_span, Some(u64::MAX)),
            suspect(named, Some(4)),
        ],
    );
    let told: Vec<_> = told
        .iter()
        .map(|(hash, what)| (*hash, what.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (named.hash, "Quarantined"),
            (whole.hash, "Whole"),
            (unnamed.hash, "Quarantined"),
            (no_span.hash, "Quarantined"),
        ]
    );
    assert!(!is_quarantined(&store, whole));
}

#[test]
fn a_blob_that_is_shorter_than_it_was_is_quarantined_unread() {
    let (_directory, store) = store();
    let blob = made(&store, 1, SPANS);
    let data = store.blob_directory(blob.hash).join("data");
    let data = File::options().write(true).open(data).unwrap();
    data.set_len(3 * SPAN_BYTES).unwrap();
    let told = looked_at(&store, vec![suspect(blob, Some(0))]);
    assert_eq!(told, [(blob.hash, "Quarantined".to_owned())]);
    assert!(is_quarantined(&store, blob));
}

#[test]
fn who_waits_finds_what_was_named_quarantined() {
    let (_directory, store) = store();
    let blobs = [1, 2, 3].map(|seed| made(&store, seed, SPANS));
    let told = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&told);
    let suspects = Suspects::begin(Arc::clone(&store), move |_, _| {
        *counted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    });
    let suspects = suspects.unwrap();
    for (blob, span) in blobs.iter().zip([Some(3), Some(0), None]) {
        flip(&store, *blob, "data", 3 * SPAN_BYTES);
        suspects.add(suspect(*blob, span));
    }
    // A bound against hanging, not a measurement.
    assert!(suspects.finish(Duration::from_secs(60)));
    assert!(blobs.iter().all(|blob| is_quarantined(&store, *blob)));
    assert_eq!(*told.lock().unwrap(), 3);
}

#[test]
fn nobody_waits_for_longer_than_said() {
    let (_directory, store) = store();
    let blob = made(&store, 1, 0);
    // It is whole, and telling that takes for ever.
    let (open, gate) = channel::<()>();
    let suspects = Suspects::begin(Arc::clone(&store), move |_, _| {
        let _ = gate.recv();
    });
    let suspects = suspects.unwrap();
    suspects.add(suspect(blob, None));
    assert!(!suspects.finish(Duration::from_millis(10)));
    drop(open);
}

/// Fills a blob but for its last group.
fn in_part(store: &Store, seed: u8) -> (Arc<PartialBlob>, Vec<u8>) {
    let other = tempfile::tempdir().unwrap();
    let other = Store::open(other.path()).unwrap();
    let identity = made(&other, seed, 2);
    let directory = other.blob_directory(identity.hash);
    let content = std::fs::read(directory.join("data")).unwrap();
    let tree = std::fs::read(directory.join("outboard")).unwrap();
    let partial = store.partial(identity, |file| {
        file.write_all_at(&tree, 0).unwrap();
        Ok::<_, StoreError>(())
    });
    let partial = partial.unwrap();
    let (filled, rest) = content.split_at(2 * SPAN_BYTES as usize);
    partial.write(0, filled).unwrap();
    assert!(!store.save_partial(&partial).unwrap());
    (Arc::new(partial), rest.to_vec())
}

fn flip_part(store: &Store, partial: &PartialBlob, name: &str, offset: u64) {
    let path = store.partial_directory(partial.identity()).join(name);
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

#[test]
fn of_a_blob_that_is_here_in_part_what_is_wrong_is_missing_again() {
    let (_directory, store) = store();
    let (partial, _) = in_part(&store, 1);
    flip_part(&store, &partial, "data", SPAN_BYTES + 20_000);
    // Elsewhere: a VMM names a blob once.
    flip_part(&store, &partial, "data", 5);
    let named = Suspect {
        identity: partial.identity(),
        span: Some(1),
        partial: Some(Arc::clone(&partial)),
    };
    let told = looked_at(&store, vec![named]);
    assert_eq!(told, [(partial.identity().hash, "Forgotten".to_owned())]);
    assert_eq!(partial.missing(), 3);
    // It is known to the next run.
    let again = store.partial(partial.identity(), |_| Ok::<_, StoreError>(()));
    let again = again.unwrap();
    assert_eq!(again.next_missing(0..100, 100), Some((0, 1)));
    assert_eq!(again.next_missing(1..100, 100), Some((65, 1)));
}

#[test]
fn a_blob_in_part_whose_hash_tree_is_wrong_is_begun_anew() {
    let (_directory, store) = store();
    let (partial, _) = in_part(&store, 1);
    flip_part(&store, &partial, "outboard", 3);
    let named = Suspect {
        identity: partial.identity(),
        span: None,
        partial: Some(Arc::clone(&partial)),
    };
    let told = looked_at(&store, vec![named]);
    assert_eq!(told[0].1, "Forgotten");
    assert!(!store.partial_directory(partial.identity()).exists());
}

#[test]
fn a_blob_that_was_here_in_part_and_is_complete_is_quarantined() {
    let (_directory, store) = store();
    let (partial, rest) = in_part(&store, 1);
    flip_part(&store, &partial, "data", 5);
    // By another process, which knows nothing of what is wrong.
    let other = store.partial(partial.identity(), |_| Ok::<_, StoreError>(()));
    let other = other.unwrap();
    other
        .write(2 * SPAN_BYTES / outboard::GROUP_BYTES, &rest)
        .unwrap();
    assert!(store.save_partial(&other).unwrap());
    let named = Suspect {
        identity: partial.identity(),
        span: Some(0),
        partial: Some(Arc::clone(&partial)),
    };
    let told = looked_at(&store, vec![named]);
    assert_eq!(told[0].1, "Quarantined");
    assert!(is_quarantined(&store, partial.identity()));
}
