//! Images from honest peers and from others.

use outboard::GROUP_BYTES;

use super::super::message::{Answer, ImageAnswer, LayerAnswer, Request, encode};
use super::hostile::{Hostile, Reply};
use super::*;
use crate::image::reference::StoredReference;
use crate::store::{Imported, StoreError, record};

fn layers() -> Vec<Vec<u8>> {
    let files: [&[u8]; 3] = [&noise(1, 1_500_000), &noise(2, 70_000), b"small"];
    let all = files.map(|content| tar(&[("bin/tool", content), ("etc/motd", b"hello")]));
    all.to_vec()
}

fn fetch(node: &Node, client: &Client, wanted: &str) -> (Result<Imported, PeerError>, String) {
    let store = node.store();
    let told = Told::default();
    let lease = store.lease().unwrap();
    let fetched = client.fetch_image(&store, &wanted.parse().unwrap(), &lease, &told, &go_on());
    (fetched, told.all())
}

/// Says that a layer consists of these blobs, in a node's own records.
fn forge(node: &Node, layer: &LayerAnswer) {
    let record = json!({
        "diff_id": layer.diff_id,
        "tar_bytes": layer.tar_bytes,
        "blob": layer.blob,
        "skeleton": layer.skeleton,
    });
    let path = format!("layers/v1/{}.json", layer.diff_id.hex());
    let bytes = record::encode(&record).unwrap();
    std::fs::write(node.directory.path().join(path), bytes).unwrap();
}

fn described(node: &Node, diff_id: Digest) -> LayerAnswer {
    let layer = node.store().layer(diff_id).unwrap().unwrap();
    LayerAnswer {
        diff_id,
        tar_bytes: layer.tar_bytes,
        blob: layer.blob.identity,
        skeleton: layer.skeleton.identity,
    }
}

#[test]
fn an_image_is_fetched_by_its_id_and_is_the_same() {
    let (own, other) = (Node::new(), Node::new());
    let image = load(&other.store(), &layers(), &["demo:v1"]);
    let other = other.serving(&[&own]);
    let client = own.client(vec![other.as_peer()]);
    let (fetched, told) = fetch(&own, &client, &image.id.to_string());
    let fetched = fetched.unwrap();
    assert_eq!((fetched.converted, fetched.reused, &told[..]), (3, 0, ""));
    assert_eq!(fetched.image.diff_ids, image.diff_ids);
    assert!(fetched.image.names.is_empty() && fetched.image.manifest.is_none());
    for diff_id in &image.diff_ids {
        assert_eq!(described(&own, *diff_id), described(&other, *diff_id));
    }
    own.store().verify(&fetched.image).unwrap();
    let again = fetch(&own, &client, &image.id.to_string()).0.unwrap();
    assert_eq!((again.converted, again.reused), (0, 3));
}

#[test]
fn a_long_skeleton_and_long_files_do_not_wait_for_one_another() {
    let (own, other) = (Node::new(), Node::new());
    let large = noise(1, 5_000_000);
    let seeds = noise(2, 48 * 40_000);
    let names: Vec<String> = seeds
        .chunks(48)
        .map(|seed| seed.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    let mut files: Vec<(&str, &[u8])> = vec![("first", &large)];
    files.extend(names.iter().map(|name| (&name[..], &b"x"[..])));
    files.push(("last", &large));
    let image = load(&other.store(), &[tar(&files)], &[]);
    let skeleton = described(&other, image.diff_ids[0]).skeleton;
    assert!(skeleton.bytes > 2 << 20, "{skeleton:?}");
    let other = other.serving(&[&own]);
    let client = own.client(vec![other.as_peer()]);
    let (fetched, told) = fetch(&own, &client, &image.id.to_string());
    own.store().verify(&fetched.unwrap().image).unwrap();
    assert_eq!(told, "");
}

#[test]
fn an_image_that_is_larger_than_allowed_is_not_begun() {
    let (own, other) = (Node::new(), Node::new());
    let image = load(&other.store(), &layers(), &[]);
    let other = other.serving(&[&own]);
    let client = own.client(vec![other.as_peer()]);
    let limits = erofs::Limits {
        max_tar_bytes: 1_000_000,
        ..erofs::Limits::default()
    };
    let store = own.store().with_limits(limits);
    let lease = store.lease().unwrap();
    let wanted = image.id.to_string().parse().unwrap();
    let told = Told::default();
    let error = client.fetch_image(&store, &wanted, &lease, &told, &go_on());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("limits.toml"), "{error}");
    assert!(!told.all().contains("not asked any more"));
    assert_eq!(own.blob_count(), 0);
    // The peer has done nothing wrong.
    fetch(&own, &client, &image.id.to_string()).0.unwrap();
}

#[test]
fn only_a_peer_that_is_believed_says_what_a_name_means() {
    let (own, other) = (Node::new(), Node::new());
    let image = load(&other.store(), &layers(), &["demo:v1"]);
    let other = other.serving(&[&own]);
    let client = own.client(vec![other.as_peer()]);
    let (refused, _) = fetch(&own, &client, "demo:v1");
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("may be asked for it"), "{refused}");

    let manifest = image.manifest.unwrap();
    let by_digest = fetch(&own, &client, &format!("demo@{manifest}")).0.unwrap();
    assert_eq!(by_digest.image.id, image.id);
    assert_eq!(by_digest.image.manifest, Some(manifest));
    let reference: StoredReference = format!("demo@{manifest}").parse().unwrap();
    assert_eq!(own.store().find(&reference).unwrap().id, image.id);

    let mut believed = other.as_peer();
    believed.names = true;
    let client = own.client(vec![believed]);
    let by_name = fetch(&own, &client, "demo:v1").0.unwrap();
    assert_eq!(by_name.image.names, ["demo:v1".parse().unwrap()]);
    // The start of an id is no name.
    let start = &image.id.hex()[..12];
    assert!(fetch(&own, &client, start).0.is_err());
}

#[test]
fn metadata_that_a_peer_made_up_is_not_taken_in() {
    let (own, other) = (Node::new(), Node::new());
    let image = load(&other.store(), &layers(), &[]);
    let honest = described(&other, image.diff_ids[0]);
    // The content is that of the tar stream; what is around it is the peer's.
    let mut bytes = other.content(honest.blob);
    bytes[1100] ^= 0x40;
    let blob = other.store().put_for_tests(&bytes);
    forge(
        &other,
        &LayerAnswer {
            blob,
            ..honest.clone()
        },
    );
    let other = other.serving(&[&own]);
    let client = own.client(vec![other.as_peer()]);
    let fetched = fetch(&own, &client, &image.id.to_string()).0.unwrap();
    assert_eq!(described(&own, image.diff_ids[0]), honest);
    own.store().verify(&fetched.image).unwrap();
}

#[test]
fn a_layer_that_is_made_of_something_else_is_refused_and_the_next_peer_gives_it() {
    let own = Node::new();
    let good = Node::new();
    let image = load(&good.store(), &layers(), &[]);
    let [first, second] = [0, 1].map(|index| described(&good, image.diff_ids[index]));
    let junk = |node: &Node| node.store().put_for_tests(&noise(9, 50_000));
    let zeros = |node: &Node| {
        // Gigabytes, were they all taken.
        let zeros = zstd::encode_all(&vec![0; 64 << 20][..], 1).unwrap();
        node.store().put_for_tests(&zeros)
    };
    type Forgery<'a> = (&'static str, Box<dyn Fn(&Node) -> LayerAnswer + 'a>);
    let forgeries: Vec<Forgery> = vec![
        (
            "of another layer",
            Box::new(|_| LayerAnswer {
                diff_id: first.diff_id,
                ..second.clone()
            }),
        ),
        (
            "another skeleton",
            Box::new(|_| LayerAnswer {
                skeleton: second.skeleton,
                ..first.clone()
            }),
        ),
        (
            "another blob",
            Box::new(|_| LayerAnswer {
                blob: second.blob,
                ..first.clone()
            }),
        ),
        (
            "no skeleton",
            Box::new(|node| LayerAnswer {
                skeleton: junk(node),
                ..first.clone()
            }),
        ),
        (
            "zeros",
            Box::new(|node| LayerAnswer {
                skeleton: zeros(node),
                ..first.clone()
            }),
        ),
        (
            "longer",
            Box::new(|_| LayerAnswer {
                tar_bytes: first.tar_bytes - 512,
                ..first.clone()
            }),
        ),
    ];
    let good = good.serving(&[&own]);
    for (case, forgery) in forgeries {
        let evil = Node::new();
        load(&evil.store(), &layers(), &[]);
        forge(&evil, &forgery(&evil));
        let evil = evil.serving(&[&own]);
        let victim = Node {
            directory: tempfile::tempdir().unwrap(),
            key: own.key.clone(),
            notes: Arc::default(),
            server: None,
        };
        let id = image.id.to_string();
        let client = victim.client(vec![evil.as_peer()]);
        let error = fetch(&victim, &client, &id).0.unwrap_err();
        assert!(matches!(error, PeerError::Nobody { .. }), "{case}: {error}");
        assert!(victim.store().images().unwrap().is_empty(), "{case}");
        assert!(
            victim.store().layer(first.diff_id).unwrap().is_none(),
            "{case}"
        );
        victim.blob_count();

        let client = victim.client(vec![evil.as_peer(), good.as_peer()]);
        let (fetched, told) = fetch(&victim, &client, &id);
        victim.store().verify(&fetched.unwrap().image).unwrap();
        assert!(told.contains("not asked any more"), "{case}: {told}");
    }
}

#[test]
fn what_was_sound_of_an_image_that_a_peer_gives_wrong_stays_for_the_next() {
    let (own, evil) = (Node::new(), Node::new());
    let image = load(&evil.store(), &layers(), &[]);
    let [first, second] = [0, 1].map(|index| described(&evil, image.diff_ids[index]));
    let wrong = LayerAnswer {
        skeleton: first.skeleton,
        ..second
    };
    forge(&evil, &wrong);
    let evil = evil.serving(&[&own]);
    let client = own.client(vec![evil.as_peer()]);
    let error = fetch(&own, &client, &image.id.to_string()).0.unwrap_err();
    assert!(matches!(error, PeerError::Nobody { .. }), "{error}");
    assert!(own.store().layer(first.diff_id).unwrap().is_some());
    assert!(own.store().layer(second.diff_id).unwrap().is_none());
}

#[test]
fn documents_that_are_others_are_refused() {
    let own = Node::new();
    let good = Node::new();
    let image = load(&good.store(), &layers()[..1], &[]);
    let config = good.store().config_document(image.id).unwrap();
    let honest = ImageAnswer {
        id: image.id,
        config_bytes: config.len() as u64,
        manifest_bytes: None,
        layers: vec![described(&good, image.diff_ids[0])],
    };
    let sent = |harm: &dyn Fn(&mut ImageAnswer, &mut Vec<u8>)| {
        let (mut answer, mut documents) = (honest.clone(), config.clone());
        harm(&mut answer, &mut documents);
        let head = encode(&Answer::Image(answer)).unwrap();
        Reply::Bytes([head, documents].concat())
    };
    let other = Digest::of(b"other");
    let cases = [
        ("another id", sent(&|answer, _| answer.id = other)),
        ("another document", sent(&|_, documents| documents[5] ^= 1)),
        (
            "a shorter one",
            sent(&|_, documents| documents.truncate(20)),
        ),
        ("no layers", sent(&|answer, _| answer.layers.clear())),
        (
            "other layers",
            sent(&|answer, _| answer.layers[0].diff_id = other),
        ),
        (
            "too long",
            sent(&|answer, _| answer.config_bytes = u64::MAX),
        ),
        (
            "another image",
            sent(&|answer, documents| {
                *documents = documents.replace_last(b"sh", b"ls");
                answer.id = Digest::of(documents);
            }),
        ),
        (
            "a blob",
            Reply::Bytes(
                encode(&Answer::Blob {
                    bytes: 1,
                    has: vec![],
                })
                .unwrap(),
            ),
        ),
    ];
    for (case, reply) in cases {
        let reply = Mutex::new(Some(reply));
        let hostile = Hostile::new(&own, move |request| {
            assert!(matches!(request, Request::Image(_)));
            let reply = reply.lock().unwrap().take();
            reply.unwrap_or(Reply::Bytes(Vec::new()))
        });
        let client = own.client(vec![hostile.as_peer()]);
        let (fetched, told) = fetch(&own, &client, &image.id.to_string());
        assert!(matches!(fetched, Err(PeerError::Nobody { .. })), "{case}");
        assert!(told.contains("not asked any more"), "{case}: {told}");
        assert!(own.store().images().unwrap().is_empty(), "{case}");
        assert_eq!(own.blob_count(), 0, "{case}");
    }
}

trait ReplaceLast {
    fn replace_last(&self, from: &[u8], to: &[u8]) -> Vec<u8>;
}

impl ReplaceLast for Vec<u8> {
    fn replace_last(&self, from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = self.windows(from.len()).rposition(|window| window == from);
        let at = at.unwrap();
        [&self[..at], to, &self[at + from.len()..]].concat()
    }
}

#[test]
fn what_a_verification_found_broken_is_mended_from_peers() {
    let (own, other) = (Node::new(), Node::new());
    let image = load(&other.store(), &layers(), &[]);
    load(&own.store(), &layers(), &["demo:v1"]);
    let lost = load(&own.store(), &[tar(&[("only", b"here")])], &["lost"]);
    let store = own.store();
    let blobs = own.directory.path().join("blobs");
    let [one, two, three] = [0, 1, 2].map(|index| described(&own, image.diff_ids[index]));
    // A wrong bit, a blob that is gone, and a record that is.
    let data = blobs.join(one.blob.hash.hex()).join("data");
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[GROUP_BYTES as usize + 7] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    std::fs::remove_dir_all(blobs.join(two.skeleton.hash.hex())).unwrap();
    let record = format!("layers/v1/{}.json", three.diff_id.hex());
    std::fs::remove_file(own.directory.path().join(record)).unwrap();
    let only = described(&own, lost.diff_ids[0]);
    std::fs::remove_dir_all(blobs.join(only.blob.hash.hex())).unwrap();

    let mut report = store.verify_all(&()).unwrap().unwrap();
    assert_eq!(report.broken.len(), 2, "{report:?}");
    let other = other.serving(&[&own]);
    let client = own.client(vec![other.as_peer()]);
    let mended = mend(&client, &store, &mut report, &(), &go_on()).unwrap();
    assert_eq!(mended.images.len(), 1, "{mended:?}");
    assert_eq!(mended.images[0].id, image.id);
    assert_eq!(report.broken.len(), 1);
    assert_eq!(mended.failed[0].0.id, lost.id);
    for layer in [one, two, three] {
        assert_eq!(described(&own, layer.diff_id), layer);
    }
    let named: StoredReference = "demo:v1".parse().unwrap();
    store.verify(&store.find(&named).unwrap()).unwrap();
    let named: StoredReference = "lost".parse().unwrap();
    let error = store.verify(&store.find(&named).unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
}
