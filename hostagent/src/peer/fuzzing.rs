//! What peers send, for `fuzz/`.

use std::ops::Range;

use outboard::{BlobHash, Geometry, Tree};

use super::encoding::Piece;
use super::message::{Answer, Request, encode, run_of};

/// A request is read, and is itself when it is written and read again.
pub fn request(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let Ok(again) = encode(&request) else {
            panic!("a request that cannot be written: {request:?}");
        };
        assert_eq!(
            serde_json::from_slice::<Request>(&again[4..]).ok(),
            Some(request)
        );
    }
}

/// An answer likewise; its numbers are checked, and a run of it goes forward.
pub fn answer(bytes: &[u8]) {
    let Ok(answer) = serde_json::from_slice::<Answer>(bytes) else {
        return;
    };
    match &answer {
        Answer::Image(image) => drop(image.check(&erofs::Limits::default())),
        Answer::Blob { bytes, has } => {
            for from in [0, 1, *bytes, u64::MAX] {
                if let Ok(end) = run_of(has, from) {
                    assert!(end >= from);
                    let _ = Piece::first_of(Geometry::of(*bytes), &(from..end));
                }
            }
        }
        Answer::NotHere | Answer::Failed { .. } => {}
    }
    let Ok(again) = encode(&answer) else {
        panic!("an answer that cannot be written: {answer:?}");
    };
    assert_eq!(
        serde_json::from_slice::<Answer>(&again[4..]).ok(),
        Some(answer)
    );
}

/// What was sent is no piece of a blob of this length, whose hash nobody can have met.
pub fn piece(blob_bytes: u64, groups: Range<u64>, sent: &[u8]) {
    let Some(piece) = Piece::first_of(Geometry::of(blob_bytes), &groups) else {
        return;
    };
    assert!(!piece.groups.is_empty() && piece.bytes() <= 2 << 20);
    let tree = Tree::new(BlobHash::of(b"what no peer has"), blob_bytes);
    // As long as it should be, so that more than its length is looked at.
    let mut whole = sent.to_owned();
    whole.resize(piece.bytes(), 0);
    assert!(piece.verify(&tree, sent).is_none() && piece.verify(&tree, &whole).is_none());
}
