//! Blobs from honest peers and from others.

use std::sync::Arc;

use outboard::{GROUP_BYTES, Geometry, SPAN_BYTES};

use super::super::blob::BlobStream;
use super::super::encoding::Piece;
use super::super::message::{Answer, Request, encode};
use super::hostile::{Hostile, Reply};
use super::*;
use crate::store::Blob;

/// What an honest peer would send for these groups.
pub fn honest(blob: &Blob, mut groups: std::ops::Range<u64>) -> Vec<u8> {
    let geometry = Geometry::of(blob.identity.bytes);
    let mut bytes = Vec::new();
    while let Some(piece) = Piece::first_of(geometry, &groups) {
        bytes.extend(piece.read(blob).unwrap());
        groups.start = piece.groups.end;
    }
    bytes
}

pub fn announced(bytes: u64, has: &[[u64; 2]]) -> Vec<u8> {
    let has = has.to_vec();
    encode(&Answer::Blob { bytes, has }).unwrap()
}

/// A victim, an honest peer that has a blob, and the blob there.
pub fn nodes(length: usize) -> (Node, Node, BlobIdentity) {
    let victim = Node::new();
    let good = Node::new();
    let identity = good.store().put_for_tests(&noise(5, length));
    (victim, good, identity)
}

fn fetch(node: &Node, client: &Client, identity: BlobIdentity) -> Result<String, PeerError> {
    let store = node.store();
    let told = Told::default();
    client.fetch_blob(&store, identity, &store.lease()?, &told)?;
    Ok(told.all())
}

#[test]
fn blobs_of_any_length_arrive_whole() {
    let own = Node::new();
    let other = Node::new();
    let lengths = [
        0,
        1,
        GROUP_BYTES as usize,
        100_000,
        SPAN_BYTES as usize,
        5_000_001,
    ];
    let identities = lengths.map(|length| other.store().put_for_tests(&noise(1, length)));
    let other = other.serving(&[&own]);
    let client = own.client(vec![other.as_peer()]);
    for identity in identities {
        fetch(&own, &client, identity).unwrap();
        assert!(own.content(identity) == other.content(identity));
    }
    assert_eq!(own.blob_count(), lengths.len());
}

#[test]
fn what_nobody_has_is_an_error_that_names_who_was_asked() {
    let (own, good, _) = nodes(1);
    let good = good.serving(&[&own]);
    let unserved = Hostile::new(&own, |_| Reply::Bytes(encode(&Answer::NotHere).unwrap()));
    let client = own.client(vec![unserved.as_peer(), good.as_peer()]);
    let identity = BlobIdentity {
        hash: outboard::BlobHash::of(b"none"),
        bytes: 4,
    };
    let error = fetch(&own, &client, identity).unwrap_err();
    assert!(matches!(&error, PeerError::Nobody { attempts, .. } if attempts.len() == 2));
    let address = good.as_peer().address.unwrap();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert_eq!(own.blob_count(), 0);
}

#[test]
fn the_next_peer_goes_on_where_one_failed() {
    let (own, good, identity) = nodes(4_000_000);
    let blob = good.store().blob(identity, String::new).unwrap();
    let geometry = Geometry::of(identity.bytes);
    let first = honest(&blob, 0..70);
    let head = announced(identity.bytes, &[[0, geometry.groups()]]);
    let begun = [&head[..], &first[..]].concat();
    let gone = {
        let begun = begun.clone();
        Hostile::new(&own, move |request| match request {
            Request::Blob { groups, .. } if groups[0] == 0 => Reply::ThenGone(begun.clone()),
            _ => Reply::ThenGone(Vec::new()),
        })
    };
    let head = announced(identity.bytes, &[[0, 1], [64, 128]]);
    let second = honest(&blob, 64..128);
    let part = [&head[..], &second[..]].concat();
    let partial = Hostile::new(&own, move |request| match request {
        Request::Blob { groups, .. } if groups[0] == 64 => Reply::Bytes(part.clone()),
        _ => Reply::Bytes(announced(4_000_000, &[[0, 1], [64, 128]])),
    });
    let good = good.serving(&[&own]);
    let client = own.client(vec![gone.as_peer(), partial.as_peer(), good.as_peer()]);
    let told = fetch(&own, &client, identity).unwrap();
    assert!(own.content(identity) == good.content(identity));
    // A span arrives as a whole or not at all.
    let from = |hostile: &Hostile| match &hostile.requests.lock().unwrap()[0] {
        Request::Blob { groups, .. } => groups[0],
        request => panic!("{request:?}"),
    };
    assert_eq!((from(&gone), from(&partial)), (0, 64));
    assert_eq!(
        gone.asked(),
        3,
        "once more as something came of it, and once anew"
    );
    assert_eq!(partial.asked(), 2, "once more for what it has not");
    assert!(told.contains("the connection broke"), "{told}");
}

#[test]
fn a_peer_that_sends_what_it_should_not_is_named_and_not_asked_again() {
    let (own, good, identity) = nodes(3_000_000);
    let blob = good.store().blob(identity, String::new).unwrap();
    let groups = Geometry::of(identity.bytes).groups();
    let head = announced(identity.bytes, &[[0, groups]]);
    let body = honest(&blob, 0..groups);
    let nodes = 64 * (2 + 63);
    let sent = |harm: &dyn Fn(&mut Vec<u8>)| {
        let mut body = body.clone();
        harm(&mut body);
        [&head[..], &body[..]].concat()
    };
    let document = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let image = r#"{"image":{"id":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","config_bytes":0,"manifest_bytes":null,"layers":[]}}"#;
    type Case = (&'static str, Reply);
    let cases: Vec<Case> = vec![
        (
            "another length",
            Reply::Bytes(announced(identity.bytes + 1, &[[0, groups]])),
        ),
        (
            "a length beyond all",
            Reply::Bytes(announced(u64::MAX, &[[0, u64::MAX]])),
        ),
        ("a wrong root", Reply::Bytes(sent(&|body| body[3] ^= 1))),
        (
            "a wrong node",
            Reply::Bytes(sent(&|body| body[64 * 20] ^= 1)),
        ),
        (
            "a wrong byte",
            Reply::Bytes(sent(&|body| body[nodes + 5] ^= 1)),
        ),
        (
            "a wrong byte later",
            Reply::Bytes(sent(&|body| body[2_900_000] ^= 1)),
        ),
        (
            "groups in another order",
            Reply::Bytes(sent(&|body| {
                body[nodes..nodes + 2 * GROUP_BYTES as usize].rotate_left(GROUP_BYTES as usize);
            })),
        ),
        (
            "an early end",
            Reply::Bytes(sent(&|body| body.truncate(1_500_000))),
        ),
        ("an end at once", Reply::Bytes(Vec::new())),
        ("half a message", Reply::Bytes(head[..9].to_vec())),
        ("an endless stream", Reply::ThenEndless(head.clone())),
        ("an endless message", Reply::ThenEndless(vec![0xff; 4])),
        ("no JSON", Reply::Bytes(document("{]"))),
        (
            "JSON of another kind",
            Reply::Bytes(document("{\"blobs\":1}")),
        ),
        ("an image", Reply::Bytes(document(image))),
        (
            "too many ranges",
            Reply::Bytes(announced(identity.bytes, &[[0, 1]; 257])),
        ),
    ];
    let good = good.serving(&[&own]);
    for (case, reply) in cases {
        let victim = Node {
            directory: tempfile::tempdir().unwrap(),
            key: own.key.clone(),
            notes: Arc::default(),
            server: None,
        };
        let reply = Mutex::new(Some(reply));
        let hostile = Hostile::new(&own, move |_| {
            let reply = reply.lock().unwrap().take();
            reply.unwrap_or(Reply::Bytes(Vec::new()))
        });
        let client = victim.client(vec![hostile.as_peer(), good.as_peer()]);
        let told = fetch(&victim, &client, identity).unwrap();
        assert!(victim.content(identity) == good.content(identity), "{case}");
        let named = hostile.as_peer().key.to_string();
        let expected = format!("peer {named} at {}", hostile.as_peer().address.unwrap());
        assert!(told.contains(&expected), "{case}: {told}");
        assert!(told.contains("not asked any more"), "{case}: {told}");
        victim.store().quarantine(identity.hash).unwrap();
        fetch(&victim, &client, identity).unwrap();
        assert_eq!(hostile.asked(), 1, "{case}");
        assert_eq!(victim.blob_count(), 1, "{case}");
    }
}

#[test]
fn of_a_peer_that_lies_alone_nothing_is_kept() {
    let (own, good, identity) = nodes(3_000_000);
    let blob = good.store().blob(identity, String::new).unwrap();
    let groups = Geometry::of(identity.bytes).groups();
    let mut bytes = announced(identity.bytes, &[[0, groups]]);
    bytes.extend(honest(&blob, 0..groups));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let hostile = Hostile::new(&own, move |_| Reply::Bytes(bytes.clone()));
    let client = own.client(vec![hostile.as_peer()]);
    let error = fetch(&own, &client, identity).unwrap_err();
    assert!(
        error.to_string().contains("it sent what it should not"),
        "{error}"
    );
    let again = fetch(&own, &client, identity).unwrap_err();
    assert!(again.to_string().contains("not asked any more"), "{again}");
    assert_eq!(own.blob_count(), 0);
}

#[test]
fn a_peer_that_falls_silent_is_left() {
    let (own, good, identity) = nodes(3_000_000);
    let blob = good.store().blob(identity, String::new).unwrap();
    let groups = Geometry::of(identity.bytes).groups();
    let mut begun = announced(identity.bytes, &[[0, groups]]);
    begun.extend(&honest(&blob, 0..groups)[..1_200_000]);
    let silent = Hostile::new(&own, |_| Reply::ThenSilence(Vec::new()));
    let later = Hostile::new(&own, move |_| Reply::ThenSilence(begun.clone()));
    let good = good.serving(&[&own]);
    let client = own.client(vec![silent.as_peer(), later.as_peer(), good.as_peer()]);
    let told = fetch(&own, &client, identity).unwrap();
    assert_eq!(told.matches("it sent nothing for 2 s").count(), 2, "{told}");
    assert!(own.content(identity) == good.content(identity));
}

#[test]
fn whoever_takes_long_over_what_has_arrived_gets_the_rest_all_the_same() {
    let (own, good, identity) = nodes(6_000_000);
    let good = good.serving(&[&own]);
    let client = own.client(vec![good.as_peer()]);
    let mut stream = BlobStream::new(Arc::clone(&client.session), identity, u64::MAX);
    let mut arrived = Vec::new();
    let fetched = client.runtime.run(&|| false, async {
        while let Some((bytes, verified)) = stream.next().await? {
            if arrived.is_empty() {
                // Until the server has given up.
                tokio::time::sleep(PATIENCE.stall * 2).await;
            }
            arrived.extend_from_slice(&bytes[verified.data]);
        }
        Ok::<_, PeerError>(())
    });
    fetched.unwrap();
    assert!(arrived == good.content(identity));
}

#[test]
fn whoever_waits_for_a_silent_peer_can_stop() {
    struct Stopped;
    impl Progress for Stopped {
        fn cancelled(&self) -> bool {
            true
        }
    }
    let (own, _, identity) = nodes(10);
    let silent = Hostile::new(&own, |_| Reply::ThenSilence(Vec::new()));
    let client = own.client(vec![silent.as_peer()]);
    let store = own.store();
    let lease = store.lease().unwrap();
    let error = client.fetch_blob(&store, identity, &lease, &Stopped);
    assert!(matches!(error, Err(PeerError::Cancelled)), "{error:?}");
    assert_eq!(own.blob_count(), 0);
}

#[test]
fn what_a_peer_says_of_its_own_troubles_is_passed_on() {
    let (own, good, identity) = nodes(2_000_000);
    let reset = Hostile::new(&own, |_| Reply::ThenReset(Vec::new(), 2));
    let failed = Hostile::new(&own, |_| {
        let problem = "disk \u{1b}[2J on fire".to_owned();
        Reply::Bytes(encode(&Answer::Failed { problem }).unwrap())
    });
    let path = good
        .directory
        .path()
        .join("blobs")
        .join(identity.hash.hex());
    let mut data = std::fs::read(path.join("data")).unwrap();
    data[1_500_000] ^= 4;
    std::fs::write(path.join("data"), data).unwrap();
    let good = good.serving(&[&own]);
    let client = own.client(vec![reset.as_peer(), failed.as_peer(), good.as_peer()]);
    let error = fetch(&own, &client, identity).unwrap_err().to_string();
    assert!(error.contains("its own copy is corrupt"), "{error}");
    assert!(
        error.contains("on fire") && !error.contains('\u{1b}'),
        "{error}"
    );
    let notes = good.notes.lock().unwrap().join("\n");
    assert!(notes.contains("is corrupt between bytes"), "{notes}");
    assert_eq!(own.blob_count(), 0);
}
