//! Ranges for somebody who waits.

use std::ops::Range;
use std::time::Instant;

use outboard::GROUP_BYTES;

use super::super::message::{Answer, Request, encode};
use super::blobs::{announced, honest, nodes};
use super::hostile::{Hostile, Reply};
use super::*;
use crate::runtime::Cancelled;

fn client(node: &Node, peers: Vec<Peer>) -> RangeClient {
    let settings = Settings {
        peers,
        ..Settings::default()
    };
    RangeClient::new(&settings, node.key.clone()).unwrap()
}

/// What came, up to where, and what was told.
fn fetch(
    client: &RangeClient,
    identity: BlobIdentity,
    groups: Range<u64>,
) -> (Vec<u8>, u64, String) {
    let mut came = Vec::new();
    let mut next = groups.start;
    let mut take = |first: u64, bytes: &[u8]| {
        assert_eq!(first, next);
        next += (bytes.len() as u64).div_ceil(GROUP_BYTES);
        came.extend_from_slice(bytes);
        Ok::<_, Cancelled>(())
    };
    let told = Mutex::new(Vec::new());
    let note = |text: String| told.lock().unwrap().push(text);
    let end = client.fetch(identity, groups, Need::Others, &mut take, &note, &|| false);
    (came, end.unwrap(), told.into_inner().unwrap().join("\n"))
}

fn part(whole: &[u8], groups: Range<u64>) -> &[u8] {
    let [start, end] = [groups.start, groups.end].map(|group| (group * GROUP_BYTES) as usize);
    &whole[start..end.min(whole.len())]
}

#[test]
fn any_range_arrives_verified() {
    let (own, good, identity) = nodes(3_000_000);
    let whole = good.content(identity);
    let good = good.serving(&[&own]);
    let client = client(&own, vec![good.as_peer()]);
    for groups in [0..1, 60..70, 3..4, 127..128, 180..184, 0..184, 183..184] {
        let (came, end, told) = fetch(&client, identity, groups.clone());
        assert!(came == part(&whole, groups.clone()), "{groups:?}");
        assert_eq!((end, told), (groups.end, String::new()));
    }
}

#[test]
fn a_peer_that_lies_gives_nothing_and_is_asked_once() {
    let (own, good, identity) = nodes(3_000_000);
    let blob = good.store().blob(identity, String::new).unwrap();
    let mut lie = announced(identity.bytes, &[[0, 184]]);
    lie.extend(honest(&blob, 60..70));
    let last = lie.len() - 1;
    lie[last] ^= 1;
    let hostile = Hostile::new(&own, move |_| Reply::Bytes(lie.clone()));
    let alone = client(&own, vec![hostile.as_peer()]);
    // The groups of the first span are right, and of use.
    let (came, end, told) = fetch(&alone, identity, 60..70);
    let whole = good.content(identity);
    assert!(came == part(&whole, 60..64));
    assert_eq!(end, 64);
    assert!(told.contains("not asked any more"), "{told}");
    assert_eq!(
        fetch(&alone, identity, 64..70),
        (Vec::new(), 64, String::new())
    );
    assert_eq!(hostile.asked(), 1);
    // The next one goes on.
    let good = good.serving(&[&own]);
    let both = client(&own, vec![hostile.as_peer(), good.as_peer()]);
    let (came, end, _) = fetch(&both, identity, 60..70);
    assert!(came == part(&whole, 60..70));
    assert_eq!(end, 70);
}

#[test]
fn a_peer_that_keeps_somebody_waiting_is_left_alone_for_a_while() {
    let (own, good, identity) = nodes(3_000_000);
    let whole = good.content(identity);
    let silent = Hostile::new(&own, |_| Reply::ThenSilence(Vec::new()));
    // An address at which nobody is.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let gone = listed(&own.key, Some(socket.local_addr().unwrap()));
    let good = good.serving(&[&own]);
    let client = client(&own, vec![gone, silent.as_peer(), good.as_peer()]);
    let begin = Instant::now();
    let (came, end, told) = fetch(&client, identity, 16..32);
    assert!(came == part(&whole, 16..32) && end == 32);
    assert_eq!(told.lines().count(), 2, "{told}");
    let waited = begin.elapsed();
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    for first in 32..64 {
        let (came, _, told) = fetch(&client, identity, first..first + 1);
        assert!(came == part(&whole, first..first + 1));
        assert_eq!(told, "");
    }
    assert_eq!(silent.asked(), 1);
}

#[test]
fn a_peer_that_sends_little_at_a_time_is_given_up() {
    let (own, good, identity) = nodes(3_000_000);
    let blob = good.store().blob(identity, String::new).unwrap();
    let mut begun = announced(identity.bytes, &[[0, 184]]);
    begun.extend(honest(&blob, 0..16));
    let slow = Hostile::new(&own, move |_| Reply::Slowly(begun.clone()));
    let client = client(&own, vec![slow.as_peer()]);
    let begin = Instant::now();
    let (came, end, told) = fetch(&client, identity, 0..16);
    assert_eq!((came.len(), end), (0, 0));
    assert!(told.contains("it took longer than 2 s"), "{told}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(fetch(&client, identity, 0..16).1, 0);
    assert_eq!(slow.asked(), 1);
}

#[test]
fn a_peer_that_does_not_have_a_blob_is_asked_for_another() {
    let (own, good, identity) = nodes(3_000_000);
    let other = good.store().put_for_tests(&noise(9, 100_000));
    let blob = good.store().blob(other, String::new).unwrap();
    let mut answer = announced(other.bytes, &[[0, 7]]);
    answer.extend(honest(&blob, 2..4));
    let poor = Hostile::new(&own, move |request| match request {
        Request::Blob { hash, .. } if hash == other.hash => Reply::Bytes(answer.clone()),
        _ => Reply::Bytes(encode(&Answer::NotHere).unwrap()),
    });
    let client = client(&own, vec![poor.as_peer()]);
    for groups in [0..16, 16..32] {
        let start = groups.start;
        assert_eq!(
            fetch(&client, identity, groups),
            (Vec::new(), start, String::new())
        );
    }
    assert_eq!(poor.asked(), 1);
    let (came, end, _) = fetch(&client, other, 2..4);
    assert!(came == part(&good.content(other), 2..4) && end == 4);
}

#[test]
fn whoever_waits_for_a_range_can_stop() {
    let (own, _, identity) = nodes(10);
    let silent = Hostile::new(&own, |_| Reply::ThenSilence(Vec::new()));
    let client = client(&own, vec![silent.as_peer()]);
    let mut take = |_: u64, _: &[u8]| Ok::<_, Cancelled>(());
    let outcome = client.fetch(identity, 0..1, Need::Last, &mut take, &|_| {}, &|| true);
    assert_eq!(outcome, Err(Cancelled));
}

#[test]
fn a_false_length_is_not_held_against_a_peer() {
    let (own, good, identity) = nodes(3_000_000);
    let other = good.store().put_for_tests(&noise(9, 100_000));
    let content = good.content(other);
    let good = good.serving(&[&own]);
    let client = client(&own, vec![good.as_peer()]);
    let bytes = identity.bytes + 1;
    let (came, end, told) = fetch(&client, BlobIdentity { bytes, ..identity }, 0..16);
    assert_eq!((came.len(), end), (0, 0));
    assert!(told.contains("has 3000000 bytes, not 3000001"), "{told}");
    let (came, _, _) = fetch(&client, other, 2..4);
    assert!(came == part(&content, 2..4));
}
